"""A grid in DVC's queue by the number of workers: `python -m benchmarks.sweep [ROUNDS [JOBS,...]]`.

Four experiments with four epochs on all of MNIST and a short evaluation, in a copy of the project
that has dataset and classifier, from `dvc queue start` until the last one is done. The numbers of
workers take turns. Needs `make repro`. JSON on the last line.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import copy_project, execute, hardware, rounds_from

GRID = "z_dim=2,5,10,20"
SHORT = {"device": "cpu", "num_epochs": 4, "sample_every": 4, "eval_samples": 20}
LIMIT = 1800.0  # seconds for a grid


def count_experiments(folder: Path) -> int:
    """The number of finished experiments. Fails if one of them failed."""
    command = ["git", "for-each-ref", "--format=%(refname)", "refs/exps"]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    refs = output.splitlines()
    assert "refs/exps/celery/failed" not in refs, "an experiment failed: dvc queue logs"
    return sum(len(ref.split("/")[2]) == 2 for ref in refs)  # DVC's own refs have longer names


def seconds(project: Path, folder: Path, jobs: str) -> float:
    """The time that the grid takes with so many workers."""
    shutil.copytree(project, folder)
    execute(folder, "dvc", "exp", "run", "--queue", "-S", GRID)
    start = time.perf_counter()
    execute(folder, "sh", "-c", f"dvc queue start -j {jobs} > .dvc/tmp/workers 2>&1")
    while count_experiments(folder) < len(GRID.split(",")):
        time.sleep(0.5)
        assert time.perf_counter() - start < LIMIT, "the queue does not end: dvc queue status"
    elapsed = time.perf_counter() - start
    execute(folder, "dvc", "queue", "stop")
    return elapsed


def main() -> None:
    """Take turns and print one line per number of workers."""
    rounds = rounds_from(sys.argv, 1)
    arms = sys.argv[2].split(",") if len(sys.argv) > 2 else ["1", "2", "4"]
    times: dict[str, list[float]] = {jobs: [] for jobs in arms}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # workers end later
        project = Path(scratch, "project")
        copy_project(project, **SHORT)
        for turn in range(rounds):
            for jobs in arms:
                times[jobs].append(seconds(project, Path(scratch, f"{turn}-{jobs}"), jobs))
    alone = statistics.median(times[arms[0]])
    for jobs, elapsed in times.items():
        median = statistics.median(elapsed)
        print(f"{jobs} at a time: {median:.1f} s, {alone / median:.2f} times the throughput")
    record = {"hardware": hardware(torch.device("cpu")), "grid": GRID, **SHORT, "seconds": times}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
