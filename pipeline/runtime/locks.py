"""Locks between processes, held until they are given back or the process ends, however it ends.

On a disk without locks every lock is free: nothing is shared, and nothing fails.
"""

from pathlib import Path

from filelock import FileLock, Timeout

_held: dict[Path, FileLock] = {}


def try_lock(path: Path) -> bool:
    """Lock the file for this process. False if another process has locked it."""
    if path in _held:
        return True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError:
        return True
    _held[path] = lock
    return True


def unlock(path: Path) -> None:
    """Give the lock back before the process ends."""
    if lock := _held.pop(path, None):
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process, this one included, has locked the file."""
    if path in _held:
        return True
    is_free = try_lock(path)
    unlock(path)
    return not is_free
