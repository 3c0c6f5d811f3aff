"""What the doctor reports."""

from collections.abc import Callable
from typing import NamedTuple

from pipeline.runtime.cores import running_experiments
from pipeline.runtime.pending_run import pending_runs


class Problem(NamedTuple):
    """Something that is wrong, the command that fixes it, and what --fix calls, if that can."""

    message: str
    command: str
    fix: Callable[[], object] | None = None


def when_idle(command: str) -> str:
    """The command for files that a running experiment may use."""
    if running_experiments() or not all(record.has_ended() for record in pending_runs()):
        return f"when no experiment is running: {command}"
    return command
