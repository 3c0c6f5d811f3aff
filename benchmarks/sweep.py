"""A grid as a sweep and in DVC's queue: `python -m benchmarks.sweep [ROUNDS [ARM,...]]`.

Four experiments with four epochs on all of MNIST and a short evaluation, in a copy of the project
that has dataset and classifier, from the start of the workers until the last one is done. An arm is
an engine and the number of its workers: sweep:1, queue:2. They take turns. Needs `make repro`. JSON
on the last line.
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


def seconds(project: Path, folder: Path, arm: str) -> float:
    """The time that the grid takes with this engine and so many workers."""
    engine, _, jobs = arm.partition(":")
    shutil.copytree(project, folder)
    return {"sweep": sweep, "queue": queue}[engine](folder, jobs)


def sweep(folder: Path, jobs: str) -> float:
    """The time of `sweep work`."""
    execute(folder, sys.executable, "-m", "pipeline", "sweep", "new", "grid", GRID)
    start = time.perf_counter()
    execute(folder, sys.executable, "-m", "pipeline", "sweep", "work", "grid", "--jobs", jobs)
    assert count_experiments(folder) == len(GRID.split(",")), "an experiment failed"
    return time.perf_counter() - start


def queue(folder: Path, jobs: str) -> float:
    """The time of `dvc queue start`."""
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
    """Take turns and print one line per arm."""
    rounds = rounds_from(sys.argv, 1)
    arms = (
        sys.argv[2].split(",")
        if len(sys.argv) > 2
        else ["sweep:1", "sweep:2", "queue:1", "queue:2"]
    )
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # workers end later
        project = Path(scratch, "project")
        copy_project(project, **SHORT)
        for turn in range(rounds):
            for arm in arms:
                times[arm].append(seconds(project, Path(scratch, f"{turn}-{arm}"), arm))
    alone = statistics.median(times[arms[0]])
    for arm, elapsed in times.items():
        median = statistics.median(elapsed)
        print(f"{arm}: {median:.1f} s, {alone / median:.2f} times the throughput of {arms[0]}")
    record = {"hardware": hardware(torch.device("cpu")), "grid": GRID, **SHORT, "seconds": times}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
