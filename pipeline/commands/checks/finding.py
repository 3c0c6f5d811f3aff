"""What a check of the doctor's finds."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.tracking.server import StoreError


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, and the command for a person to type."""

    what: str
    command: str
    fix: Callable[[], bool] | None = None  # what --fix does; False where it had better not
    remark: bool = False  # worth a line, and no fault

    def mend(self) -> bool:
        """Do what is safe; whether it is mended."""
        try:
            return self.fix is not None and self.fix()
        except (OSError, StoreError):  # somebody holds it, or nobody may write there
            return False
