"""What a check reports."""

from collections.abc import Callable
from typing import NamedTuple


class Problem(NamedTuple):
    """Something that is wrong, the command that fixes it, and what --fix calls, if that can."""

    message: str
    command: str
    fix: Callable[[], object] | None = None
