"""`make bench`: the benchmarks in a short form, into reports/benchmarks/, with a picture.

`python -m benchmarks.run [ROUNDS] [NAME ...]`. A record goes to the file of the device that it
names, in place of an older one.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.measure import PARAMS, ROOT

REPORTS = ROOT / "reports" / "benchmarks"
# The first argument of each benchmark for one round.
ROUNDS = {
    "training": 3, "evaluation": 3, "overhead": 2, "sweep": 1, "precision": 10, "stage": 1,
    "gpu": PARAMS.num_epochs,
}  # fmt: skip
EPOCHS = ("precision", "gpu")  # their argument is a number of epochs, whatever the rounds
SHORT = ("training", "evaluation", "overhead", "sweep")  # unless others are named
OURS, OTHERS = "#2563a8", "#b9bfc6"


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Run a benchmark, show what it prints, and return the JSON of its last line."""
    count = ROUNDS[name] * (1 if name in EPOCHS else rounds)
    command = [sys.executable, "-m", f"benchmarks.{name}", str(count)]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if last:
                print(f"{name}: {last}", flush=True)
            last = line.rstrip()
    if process.returncode:
        sys.exit(f"benchmarks: {name} failed: {last}")
    record: dict[str, Any] = json.loads(last)
    return record


def store(name: str, record: dict[str, Any]) -> Path:
    """Write the record into the file of the device that it was measured on."""
    device = "-".join((record["hardware"]["gpu"] or "cpu").lower().split())
    path = REPORTS / f"{device}.json"
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(records | {name: record}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def draw(records: dict[str, Any], path: Path) -> None:
    """Draw one panel per benchmark in PANELS, if there is any."""
    panels = {name: panel for name, panel in PANELS.items() if name in records}
    if not panels:
        return
    figure = Figure(figsize=(4 * len(panels), 2.9), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for (name, (panel, title)), ax in zip(panels.items(), axes, strict=True):
        panel(records[name], ax)
        ax.set_title(title, fontsize=9, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    figure.savefig(path, metadata={"Software": None})


def draw_epochs(record: dict[str, Any], ax: Any) -> None:
    """Seconds per epoch."""
    medians = {name: statistics.median(times) for name, times in record["seconds"].items()}
    ours = {"rows", "eager", "float32", "tf32", "bfloat16"}
    colors = [OURS if name in ours else OTHERS for name in medians]
    bars = ax.barh(list(medians), list(medians.values()), color=colors)
    ax.bar_label(bars, [f"{value:.2g} s" for value in medians.values()], padding=3, fontsize=8)
    ax.invert_yaxis()


def draw_throughput(record: dict[str, Any], ax: Any) -> None:
    """Throughput of a queue by the number of workers."""
    medians = {jobs: statistics.median(times) for jobs, times in record["seconds"].items()}
    alone = next(iter(medians.values()))
    ratios = [alone / value for value in medians.values()]
    bars = ax.bar(list(medians), ratios, color=OURS)
    ax.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], fontsize=8)


def draw_overhead(record: dict[str, Any], ax: Any) -> None:
    """Seconds of an experiment with one epoch, by part."""
    names = ("train", "evaluate", "log", "dvc")
    parts = [statistics.median(result[name] for result in record["rounds"]) for name in names]
    bars = ax.barh(names, parts, color=OURS)
    ax.bar_label(bars, [f"{part:.1f} s" for part in parts], padding=3, fontsize=8)
    ax.invert_yaxis()


def draw_trainings(record: dict[str, Any], ax: Any) -> None:
    """Seconds of a whole training, by precision."""
    trainings = record["train"].items()
    seconds = {name: each["seconds"] for name, each in trainings if isinstance(each, dict)}
    bars = ax.barh(list(seconds), list(seconds.values()), color=OURS)
    ax.bar_label(bars, [f"{value:.1f} s" for value in seconds.values()], padding=3, fontsize=8)
    ax.invert_yaxis()


PANELS = {
    "training": (draw_epochs, "one epoch"),
    "sweep": (draw_throughput, "throughput of a queue by its workers"),
    "overhead": (draw_overhead, "an experiment with one epoch"),
    "gpu": (draw_trainings, "a whole training"),
}


def main() -> None:
    """Run, write, draw, and print where the results are."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()] or [1]
    names = [word for word in sys.argv[1:] if not word.isdigit()] or list(SHORT)
    if unknown := set(names) - set(ROUNDS):
        sys.exit(f"benchmarks: unknown {', '.join(sorted(unknown))}; known: {', '.join(ROUNDS)}")
    for path in {store(name, measure(name, numbers[0])) for name in names}:
        picture = path.with_suffix(".png")
        draw(json.loads(path.read_text(encoding="utf-8")), picture)
        print(f"benchmarks: wrote {path.relative_to(ROOT)} and its picture")


if __name__ == "__main__":
    main()
