"""Paths that outlive an experiment's temporary directory, and files that survive a crash."""

import os
from pathlib import Path


def home() -> Path:
    """Root of the user's repository. A queued experiment runs in a temporary directory that is deleted afterwards."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def sync(folder: Path) -> None:
    """Flush the directory entries of `folder` to disk: fsync of a renamed file does not cover the rename itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
