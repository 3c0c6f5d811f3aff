"""Paths that outlive an experiment's temporary directory, and files that survive a crash."""

import hashlib
import os
from pathlib import Path

from pipeline.errors import writing


def home() -> Path:
    """Root of the user's repository. A queued experiment runs in a temporary directory that is deleted afterwards."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def sha256_file(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, content: bytes) -> None:
    """Write the file so that after a kill or a power failure it is complete or as it was before.

    Raises UserError if it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(path.parent)


def sync(folder: Path) -> None:
    """Flush the directory entries of `folder` to disk: fsync of a renamed file does not cover the rename itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
