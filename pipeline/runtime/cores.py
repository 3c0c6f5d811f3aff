"""Concurrent experiments of a repository divide the CPU cores and use one GPU each.

There is no scheduler: each process locks a file under the root and counts the locked files. With
more threads than cores, trainings on the CPU are several times slower than with one thread each. No
result depends on the number of threads.
"""

import functools
import os
import sys
import time
from collections.abc import Sequence
from itertools import count
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


def reserve_gpu(gpus: Sequence[str]) -> int:
    """The index of the first GPU that no other experiment uses; waits for one if necessary.

    gpus: unique names.
    Two processes on one GPU would take turns, and might not fit into its memory.
    """
    free = _first_free_gpu(gpus)
    if free is None:
        print("waiting for the GPU (in use by another experiment)", file=sys.stderr)
    while free is None:
        time.sleep(POLL_SECONDS)
        free = _first_free_gpu(gpus)
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


def _first_free_gpu(gpus: Sequence[str]) -> int | None:
    locks = [_folder() / "gpus" / f"{gpu}.lock" for gpu in gpus]
    return next((index for index, lock in enumerate(locks) if try_lock(lock)), None)


def _folder() -> Path:
    return home() / ".dvc" / "tmp" / "computing"
