"""What an experiment costs beyond its epochs: `python -m benchmarks.overhead [ROUNDS]`.

`dvc exp run` with one epoch and one draw per image, in a copy of the project that has dataset and
classifier. The overhead is its wall time without that of the epoch. Then each stage alone, and
`dvc repro` with nothing to do. Needs `make repro`. JSON on the last line.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import copy_project, execute, hardware, rounds_from, set_params
from benchmarks.stage import loop

SHORT = {"device": "cpu", "num_epochs": 1, "eval_samples": 1}
STAGES = ("train", "evaluate", "log")


def experiment(folder: Path, seed: int) -> dict[str, float]:
    """Seconds of an experiment, of its stages, and of the epoch."""
    total = execute(folder, "dvc", "exp", "run", "-n", f"seed-{seed}", "-S", f"seed={seed}")
    set_params(folder, seed=1000 + seed)  # a configuration that has no checkpoint and no run
    epoch = loop(folder)
    command = (sys.executable, "-m")
    stages = {name: execute(folder, *command, f"pipeline.stages.{name}") for name in STAGES}
    execute(folder, "git", "checkout", "-q", ".")
    dvc = total - sum(stages.values())
    return {"total": total, "overhead": total - epoch, "epoch": epoch, **stages, "dvc": dvc}


def main() -> None:
    """Take the rounds and print the medians."""
    rounds = rounds_from(sys.argv, 3)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "project")
        copy_project(folder, **SHORT)
        experiment(folder, seed=0)  # creates MLflow's store
        results = [experiment(folder, seed) for seed in range(1, rounds + 1)]
        execute(folder, "dvc", "repro", "-q")
        nothing = [execute(folder, "dvc", "repro", "-q") for _ in range(rounds)]
    for name in results[0]:
        print(f"{name:10} {statistics.median(result[name] for result in results):6.2f} s")
    print(f"dvc repro with nothing to do: {statistics.median(nothing):.2f} s")
    record = {"hardware": hardware(torch.device("cpu")), "rounds": results}
    print(json.dumps(record | {"nothing_to_do": nothing}))


if __name__ == "__main__":
    main()
