"""What the experiments of a checkout that compute at the same time share: its cores, and its GPUs, one each.

Nobody manages them. A process that computes holds a file under the root, locked until it ends in whatever way, and
takes its share of the cores by how many of those files are locked, again after every record. With more threads than
cores, trainings on the CPU are several times slower than one: a thread spins on the core that the one it waits for
would need. So the share of one that has just ended stays free a while, for DVC to start what comes next on it. No
result depends on the number of threads. Where files cannot be locked, nothing is shared and nothing stops.
"""

import atexit
import fcntl
import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

GRACE = 10.0  # seconds in which the next stage, or the next experiment, takes the place of one that has ended
POLL = 1.0  # seconds between two looks for a GPU that has become free
WISHES = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
_held: dict[Path, int] = {}  # what this process has locked, and the descriptors that keep it so


def join(root: Path) -> None:
    """Be one of those who compute, until this process ends."""
    folder = _folder(root)
    with suppress(OSError):
        if _place(folder) is None:
            folder.mkdir(parents=True, exist_ok=True)
            path = next(path for path in (folder / f"process-{number:03d}" for number in count()) if _take(path))
            os.utime(path, (0, 0))
            atexit.register(_end, path)


def share_of_cores(root: Path, most: int) -> int:
    """How many threads this process should have now, `most` at most: those who compute get a core each at the least.

    `most` is what it would take if it were alone.
    """
    join(root)
    folder = _folder(root)
    cores = _available()
    held = [path for path in sorted(folder.glob("process-*")) if path in _held or _counts(path)]
    mine = _place(folder)
    if mine not in held:  # nothing can be locked here
        return min(cores, most)
    share, left = divmod(cores, len(held))
    return max(1, min(share + (held.index(mine) < left), most))


def first_free(root: Path, verb: str, gpus: Mapping[str, T]) -> T:
    """The first of `gpus`, by names that tell them apart, on which no other process computes; this one's until it ends.

    Where all are taken it waits, and says so: two processes on a GPU take turns, and their memory may not fit.
    """
    folder, said = _folder(root), False
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            for name, gpu in gpus.items():
                if _take(folder / f"gpu-{name}"):
                    return gpu
            _leave(folder)
            if not said:
                some = f"all {len(gpus)} GPUs are" if len(gpus) > 1 else "the GPU is"
                print(f"{verb}: {some} computing for other experiments: waiting", file=sys.stderr, flush=True)
                said = True
            time.sleep(POLL)
    return next(iter(gpus.values()))


def _folder(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "computing"


def _place(folder: Path) -> Path | None:
    """The file by which this process is counted."""
    return next((path for path in _held if path.parent == folder and path.name.startswith("process-")), None)


def _leave(folder: Path) -> None:
    """Who waits needs no core."""
    if path := _place(folder):
        os.close(_held.pop(path))


def _end(path: Path) -> None:
    """Say when: who is killed does not, and nothing is kept for it."""
    with suppress(OSError):
        os.utime(path)


def _take(path: Path) -> bool:
    """Lock a file until this process ends; False where another has. Files stay: removed, two could hold one name."""
    if path in _held:
        return True
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return False
        raise
    _held[path] = descriptor
    return True


def _counts(path: Path) -> bool:
    """Whether somebody computes there, or has just ended."""
    with suppress(OSError), path.open("rb") as file:
        if 0 <= time.time() - os.fstat(file.fileno()).st_mtime < GRACE:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _available() -> int:
    """The cores that this process may use: PyTorch does not ask what a container has been given of them.

    As for PyTorch, two that are one in hardware count once, unless the user wishes otherwise.
    """
    every = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    if not WISHES & os.environ.keys():
        mine = mine * (psutil.cpu_count(logical=False) or every) // every
    return max(1, math.ceil(min(mine, _quota())))


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # not Linux's control groups, or "max"
        return math.inf
