"""What an experiment costs beyond its epochs: one of a single epoch and a single draw an image, and where time goes.

`python benchmarks/overhead.py [ROUNDS]`, in a checkout that has data/raw, data/judge and reports/judge.json. In a clone
of it, `dvc exp run -S num_epochs=1 -S eval_samples=1` with a seed of its own in every round, after one that is not
counted and makes MLflow's store; download and judge are there already. The overhead is the wall time less that of the
epoch. Then `dvc repro` where there is nothing to do. Prints medians, and JSON on the last line.

The stages run as they are: the `python` that DVC finds is a script that notes when each begins and ends, and puts a
clock around the functions that its `main` calls, some of `evaluate` at a time.
"""

import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EPOCH = "train: the epoch"
PARTS = {
    "train": {
        "the epoch": ["fit"],
        "reading": ["load_images", "ingredients", "described"],
        "pictures, history, model": ["begin", "save_samples", "append", "save_model"],
    },
    "evaluate": {
        "reading": ["load_labelled", "load_model"],
        "−ELBO and −log p(x)": ["elbo", "likelihood"],
        "parts of the KL": ["latent"],
        "labels told from codes": ["labels_told"],
        "samples judged": ["samples_judged"],
        "tables and pictures": ["save_per_image", "save_bound", "save_grid", "save_pairs", "pictures"],
    },
    "log": {"reading": ["read_execution", "here"], "opening the store": ["open_store"], "logging": ["record"]},
}
SCRIPT = """#!/bin/sh
echo "start $(date +%s.%N)" >> "$OVERHEAD"
{python} {module} "$@"
status=$?
echo "end $(date +%s.%N)" >> "$OVERHEAD"
exit $status
"""


class Clock:
    """Seconds by the name of a part; what a thread calls from within another part counts as that."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.thread = threading.local()

    def time(self, part: str, call: Callable[[], Any]) -> Any:
        """Call it, and add its time to the part."""
        if getattr(self.thread, "running", False):
            return call()
        self.thread.running, start = True, time.time()
        try:
            return call()
        finally:
            self.thread.running = False
            self.seconds[part] = self.seconds.get(part, 0.0) + time.time() - start

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed; of a generator each of its steps."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            result = self.time(part, lambda: function(*args, **kwargs))
            return self.steps(part, result) if isinstance(result, Iterator) else result

        return timed

    def steps(self, part: str, records: Iterator[Any]) -> Iterator[Any]:
        """What the generator yields."""
        while (record := self.time(part, lambda: next(records, None))) is not None:
            yield record


def stage(module: str) -> None:
    """In the place of `python -m MODULE`: run it, and note what its parts take."""
    from pipeline import errors  # noqa: PLC0415  (the clone's)

    name, clock, original = module.rpartition(".")[2], Clock(), errors.run

    def run(main: Callable[[], object]) -> None:
        if main.__name__ != "main":  # `load_params`, before the imports
            return original(main)
        for part, functions in PARTS.get(name, {}).items():
            for function in functions:
                main.__globals__[function] = clock.around(part, main.__globals__[function])
        begun = time.time()
        original(main)
        with Path(os.environ["OVERHEAD"]).open("a") as file:
            file.write(f"main {json.dumps([name, begun, time.time(), clock.seconds])}\n")

    errors.run, sys.argv = run, [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def clone(folder: Path) -> None:
    """The checkout as it stands, committed in `folder` with the data and the judge there."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("dvc.lock", "reports/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in ("data/raw", "data/judge"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "judge.json", folder / "reports")
    script = folder.parent / "bin" / "python"
    script.parent.mkdir()
    script.write_text(SCRIPT.format(python=sys.executable, module=Path(__file__)))
    script.chmod(0o755)
    for command in (["git", "init", "-q"], ["dvc", "commit", "-q", "-f", "download", "judge"], ["git", "add", "-A"]):
        execute(folder, *command)
    execute(folder, "git", "commit", "-qm", "as it stands")


def execute(folder: Path, *command: str) -> float:
    """Run a command in the clone; the seconds that it takes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    env |= {f"GIT_{who}_{what}": "x@y.z" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    paths = [str(folder.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "PATH": os.pathsep.join(paths), "OVERHEAD": str(folder.parent / "times")}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def experiment(folder: Path, seed: int) -> dict[str, float]:
    """One experiment: the seconds of everything, of the epoch, of each part, and of what is left, DVC itself."""
    times = folder.parent / "times"
    times.unlink(missing_ok=True)
    changes = {"num_epochs": 1, "eval_samples": 1, "seed": seed}
    sets = [word for key, value in changes.items() for word in ("-S", f"{key}={value}")]
    total = execute(folder, "dvc", "exp", "run", "-n", f"round-{seed}", *sets)
    found, dvc = {}, total
    lines = [line.partition(" ") for line in times.read_text().splitlines()]
    for (_, _, start), (_, _, main), (_, _, end) in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, begun, over, parts = json.loads(main)
        found[f"{name}: start and imports"] = begun - float(start)
        found |= {f"{name}: {part}": parts.get(part, 0.0) for part in PARTS[name]}
        found[f"{name}: the rest, less what ran at a time"] = over - begun - sum(parts.values())
        found[f"{name}: end of the process"] = float(end) - over
        dvc -= float(end) - float(start)
    return {"total": total, "overhead": total - found[EPOCH], "DVC itself": dvc, **found}


def computed_on() -> dict[str, Any]:
    """The hardware that the stages take, by params.yaml."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    # Here, for in `stage` the time of the imports is measured.
    from measure import hardware  # noqa: PLC0415

    from pipeline.params import load_params  # noqa: PLC0415
    from pipeline.runtime.device import prepare_device  # noqa: PLC0415

    return hardware(prepare_device(load_params(ROOT / "params.yaml").device, said_in="params.yaml"))


def main() -> None:
    """Take the rounds, print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "clone")
        folder.mkdir()
        clone(folder)
        experiment(folder, seed=0)
        found = [experiment(folder, seed) for seed in range(1, rounds + 1)]
        nothing = [execute(folder, "dvc", "repro", "-q") for _ in range(rounds)]
    medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
    for name, seconds in medians.items():
        print(f"{name:46} {seconds:6.2f} s")
    print(f"{'`dvc repro` with nothing to do':46} {statistics.median(nothing):6.2f} s  (n = {rounds})")
    print(json.dumps({"hardware": computed_on(), "rounds": found, "nothing_to_do": nothing}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["-m"]:
        sys.path[0] = ""  # as `python -m` has it: the working directory
        stage(sys.argv[2])
    else:
        main()
