"""What a person did wrong, said in one line; a traceback is for what we did wrong. And how a verb ends otherwise."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class InputError(Exception):
    """Something handed in from outside is wrong. The message is one line and names the file or the key."""


def run(main: Callable[[], object]) -> None:
    """Run a verb: an InputError becomes one line on stderr and exit status 2, Ctrl-C becomes 130, SIGTERM 143.

    A stage ends with the DVC that started it: as an orphan it would write beside the next run.
    """
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        _end_with_parent()
    signal.signal(signal.SIGTERM, _terminated)
    # What the imports have made lives as long as the process: to look through it for garbage, while they are at it,
    # later and when the process ends, takes a second.
    gc.freeze()
    gc.enable()
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.disable()  # for the imports after `run(load_params)`


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where a file cannot be written, as on a full disk, raise the InputError that says so."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before that. DVC itself is the first process of a container that runs nothing else.
    if os.getppid() == 1:
        with suppress(OSError):
            if b"dvc" not in Path("/proc/1/cmdline").read_bytes():
                sys.exit(128 + signal.SIGKILL)
