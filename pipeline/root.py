"""Where that lies which outlives an experiment."""

import os
from pathlib import Path


def home() -> Path:
    """The root of the real repository: a queued experiment works in a folder that is deleted afterwards."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()
