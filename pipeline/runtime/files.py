"""Paths that outlive an experiment's temporary directory, files that survive a crash, and locks.

A lock is kept until it is released or its process ends, however it ends.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import writing

_locked: dict[Path, FileLock] = {}


def home() -> Path:
    """The root of the user's repository.

    A queued experiment runs in a temporary directory that is deleted afterwards.
    """
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def checkpoint_path(fingerprint: str) -> Path:
    """Where an interrupted training with this fingerprint left its checkpoint, if there is one."""
    return home() / ".dvc" / "tmp" / "checkpoints" / f"{fingerprint[:16]}.checkpoint"


def modules(folder: Path) -> list[Path]:
    """The Python modules under a folder: nothing else that lies there is code."""
    files = filter(Path.is_file, sorted(folder.rglob("*.py")))
    names = {file: file.relative_to(folder).with_suffix("").parts for file in files}
    return [file for file in names if all(map(str.isidentifier, names[file]))]


def sha256_file(path: Path) -> str:
    """The sha256 of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_output(path: Path, content: bytes) -> None:
    """Write an output of a stage, or a record. Raises UserError if that fails.

    It becomes a new file: DVC may have linked the old one to its cache (`cache.type`).
    """
    with writing(path):
        atomic_write(path, content)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a report, on several lines."""
    write_output(path, f"{json.dumps(values, indent=2, allow_nan=False)}\n".encode())


def atomic_write(path: Path, content: bytes) -> None:
    """Replace the file. After a kill or a crash it has the old content or the new content.

    One process at a time may write to `path`. Raises OSError, and then `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def try_lock(path: Path) -> bool:
    """Lock the file for this process. False if another process has locked it.

    On a disk without locks every lock is free.
    """
    if path in _locked:
        return True
    try:
        lock = FileLock(path, mode=0o666)  # another user of the repository may test it
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError:
        return True
    _locked[path] = lock
    return True


def unlock(path: Path) -> None:
    """Release the lock before the process ends."""
    if lock := _locked.pop(path, None):
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process, this one included, has locked the file."""
    if path in _locked:
        return True
    is_free = try_lock(path)
    unlock(path)
    return not is_free
