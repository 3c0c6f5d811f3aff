"""Concurrent experiments of a repository divide the CPU cores and the GPUs.

There is no scheduler: each process locks a file under the root and counts the locked files. With
more threads than cores, trainings on the CPU are several times slower than with one thread each. No
result depends on the number of threads.
"""

import functools
import os
import sys
import time
from collections.abc import Sequence
from itertools import count, product
from pathlib import Path

import joblib

from pipeline.runtime.files import home, is_locked, try_lock

POLL_SECONDS = 1.0


def share_of_cores(most: int) -> int:
    """The number of threads for this process now, from 1 to `most`: its share of the cores.

    Call it again from time to time: other experiments start and end.
    """
    _join(_folder() / "cores")
    return max(1, min(most, available_cores() // max(1, running_experiments())))


def running_experiments() -> int:
    """The number of processes of this repository that train or evaluate now."""
    return sum(is_locked(path) for path in (_folder() / "cores").glob("*.lock"))


def reserve_gpu(gpus: Sequence[str], jobs: int) -> int:
    """The index of a GPU with fewer than `jobs` experiments; waits for one.

    gpus: unique names.
    """
    free = _first_free_gpu(gpus, jobs)
    if free is None:
        print("waiting for the GPU (in use by other experiments)", file=sys.stderr)
    while free is None:
        time.sleep(POLL_SECONDS)
        free = _first_free_gpu(gpus, jobs)
    return free


def available_cores() -> int:
    """The cores that this process may use, by affinity and by the quota of a container.

    As in PyTorch, two hardware threads of one core count once, unless the user sets
    OMP_NUM_THREADS.
    """
    return int(joblib.cpu_count(only_physical_cores="OMP_NUM_THREADS" not in os.environ))


@functools.cache
def _join(folder: Path) -> None:
    """Lock the first free file of the folder, once."""
    next(number for number in count() if try_lock(folder / f"{number:03d}.lock"))


def _first_free_gpu(gpus: Sequence[str], jobs: int) -> int | None:
    places = product(range(jobs), range(len(gpus)))  # the first places of all GPUs come first
    folder = _folder() / "gpus"
    locked = (gpu for job, gpu in places if try_lock(folder / f"{gpus[gpu]}-{job}.lock"))
    return next(locked, None)


def _folder() -> Path:
    return home() / ".dvc" / "tmp" / "computing"
