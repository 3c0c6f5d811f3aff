"""`make bench`: every benchmark in a short form, what it found in reports/benchmarks/, by device, and a picture of it.

`python benchmarks/run.py [ROUNDS] [NAME …]`: those that are named, whose part of the file is replaced, or four of them.
The device is the one that the record says: a queue is measured on the CPU, and so kept in cpu.json, on any machine.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "reports" / "benchmarks"
# What ROUNDS rounds of each are, in its own words.
SCRIPTS = {
    "training": lambda rounds: [str(3 * rounds)],
    "evaluation": lambda rounds: [str(3 * rounds)],
    "overhead": lambda rounds: [str(2 * rounds)],
    "sweep": lambda rounds: [str(rounds), "1,2,4"],
    "precision": lambda rounds: ["10"],
    "stage": lambda rounds: [str(rounds)],
}
SHORT = ("training", "evaluation", "overhead", "sweep")  # unless others are named
INK, OURS, THEIRS = "#333333", "#2563a8", "#b9bfc6"


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Run a benchmark, show what it prints, and return what its last line says."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *SCRIPTS[name](rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if not line.startswith("{"):
                print(f"{name}: {line}", end="", flush=True)
            last = line
    if process.returncode != 0:
        sys.exit(f"benchmarks: {name} failed")
    found: dict[str, Any] = json.loads(last)
    return found


def keep(name: str, record: dict[str, Any]) -> Path:
    """Write a record into the file of the device that it was measured on, in the place of an older one."""
    device = "-".join((record["hardware"]["gpu"] or "cpu").lower().split())
    path = REPORTS / f"{device}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {name: record}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def draw(found: dict[str, Any], path: Path) -> None:
    """A panel for each benchmark whose figures a person would rather see; no picture where there is none of them."""
    panels = [panel for name, panel in PANELS.items() if name in found]
    if not panels:
        return
    figure = Figure(figsize=(3.6 * len(panels), 2.9), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, ax in zip(panels, axes, strict=True):
        panel(found, ax)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=8)
    figure.savefig(path, metadata={"Software": None})


def epoch_panel(found: dict[str, Any], ax: Any) -> None:
    """Seconds of an epoch."""
    training = found["training"]
    medians = {name: statistics.median(times) for name, times in training["seconds"].items()}
    bars = ax.barh(list(medians), list(medians.values()), color=[THEIRS, OURS, OURS])
    faster = training["times_as_fast_as_the_script"]
    ax.bar_label(
        bars,
        [f"{v:.2g} s" + (f", × {faster[n]['median']:.1f}" if n in faster else "") for n, v in medians.items()],
        padding=3, fontsize=8,
    )  # fmt: skip
    ax.set_xlim(0, max(medians.values()) * 1.25)
    ax.invert_yaxis()
    ax.set_title("an epoch, seconds", fontsize=9, loc="left")


def sweep_panel(found: dict[str, Any], ax: Any) -> None:
    """Throughput of a queue by its workers."""
    sweep = found["sweep"]
    seconds = {jobs: statistics.median(times) for jobs, times in sweep["seconds"].items()}
    base = next(iter(seconds.values()))
    bars = ax.bar(list(seconds), [base / s for s in seconds.values()], color=OURS)
    ax.bar_label(bars, [f"× {base / s:.2f}" for s in seconds.values()], fontsize=8)
    cores = sweep.get("hardware", sweep)["cores"]  # an older record has no `hardware`
    ax.set_title(f"throughput of a queue by its jobs, {cores} cores", fontsize=9, loc="left")


def overhead_panel(found: dict[str, Any], ax: Any) -> None:
    """Where the seconds go that an experiment takes beyond its epoch."""
    rounds = found["overhead"]["rounds"]
    middle = {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
    parts = {"DVC": middle["DVC itself"]}
    for name in ("train", "evaluate", "log"):
        own = {part: s for part, s in middle.items() if part.startswith(f"{name}: ") and part != "train: the epoch"}
        starts = sum(s for part, s in own.items() if part.endswith(("start and imports", "end of the process")))
        parts |= {f"{name}: imports": starts, f"{name}: work": sum(own.values()) - starts}
    bars = ax.barh(list(parts), list(parts.values()), color=OURS)
    ax.bar_label(bars, [f"{s:.1f}" for s in parts.values()], padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.set_title(f"an experiment beyond its epoch: {middle['overhead']:.1f} s", fontsize=9, loc="left")


PANELS = {"training": epoch_panel, "sweep": sweep_panel, "overhead": overhead_panel}


def main() -> None:
    """Run, write, draw, and say where to look."""
    numbers, names = [word for word in sys.argv[1:] if word.isdigit()], [w for w in sys.argv[1:] if not w.isdigit()]
    rounds = int(numbers[0]) if numbers else 1
    if unknown := set(names) - set(SCRIPTS):
        sys.exit(f"benchmarks: there is no {', '.join(sorted(unknown))}, but {', '.join(SCRIPTS)}")
    paths = [keep(name, measured(name, rounds)) for name in names or SHORT]
    for path in dict.fromkeys(paths):
        picture = path.with_suffix(".png")
        draw(json.loads(path.read_text(encoding="utf-8")), picture)
        wrote = [str(file.relative_to(ROOT)) for file in (path, picture) if file.exists()]
        print(f"benchmarks: wrote {' and '.join(wrote)}")


if __name__ == "__main__":
    main()
