"""Concurrent experiments of a repository divide the CPU cores and use one GPU each.

There is no scheduler. Each process locks a file under the root until it ends, however it ends, and
counts the locked files. With more threads than cores, trainings on the CPU are several times slower
than with one thread each. No result depends on the number of threads. On a disk that supports no
locks nothing is divided, and nothing fails.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pipeline.runtime.files import home

POLL_SECONDS = 1.0
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_locked: dict[Path, FileLock] = {}  # until this process ends


def share_of_cores(most: int) -> int:
    """The number of threads for this process now, from 1 to `most`: its share of the cores.

    Call it again from time to time: other experiments start and end.
    """
    cores = available_cores()
    try:
        folder = _locks("cores")
        if not any(path.parent == folder for path in _locked):
            next(number for number in count() if _lock(folder / f"{number:03d}.lock"))
        experiments = [
            path for path in sorted(folder.iterdir()) if path in _locked or _in_use(path)
        ]
    except OSError:
        return min(cores, most)
    share, left = divmod(cores, len(experiments))
    position = next(i for i, path in enumerate(experiments) if path in _locked)
    return max(1, min(share + (position < left), most))


def reserve_gpu(gpus: Sequence[str]) -> int:
    """The index of the first GPU that no other experiment uses; waits for one if necessary.

    gpus: unique names.
    Two processes on one GPU would take turns, and might not fit into its memory.
    """
    waiting = False
    try:
        while True:
            for index, gpu in enumerate(gpus):
                if _lock(_locks("gpus") / f"{gpu}.lock"):
                    return index
            if not waiting:
                print("waiting for the GPU (in use by another experiment)", file=sys.stderr)
            waiting = True
            time.sleep(POLL_SECONDS)
    except OSError:
        return 0


def available_cores(quota_file: Path = CPU_QUOTA) -> int:
    """The cores that this process may use. PyTorch ignores the quota of a container.

    As in PyTorch, two hardware threads of one core count once, unless the user sets
    OMP_NUM_THREADS.
    """
    every = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    if "OMP_NUM_THREADS" not in os.environ:
        mine = mine * (psutil.cpu_count(logical=False) or every) // every
    return max(1, math.ceil(min(mine, _quota(quota_file))))


def _quota(path: Path) -> float:
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no control groups of Linux, or the quota is "max"
        return math.inf


def _locks(kind: str) -> Path:
    folder = home() / ".dvc" / "tmp" / "computing" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _lock(path: Path) -> bool:
    """Lock the file until this process ends. False if another process has locked it."""
    lock = _locked.get(path) or FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    _locked[path] = lock
    return True


def _in_use(path: Path) -> bool:
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True
