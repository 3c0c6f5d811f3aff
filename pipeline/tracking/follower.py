"""Follows a training in its own process and streams its metrics to MLflow, epoch by epoch.

Started by `pending_run.follow_training` with the path of the record. It reads the files that the
training writes and never delays it. It ends when its stdin is closed; what it reads there is how
the training ended.
"""

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.paths import HISTORY
from pipeline.runtime.pending_run import PendingRun, load_pending

if TYPE_CHECKING:
    from pipeline.tracking.stream import Stream

POLL = 1.0  # seconds between two looks at the files
PAUSE = 30.0  # seconds before an unreachable store is tried again


def main() -> None:
    """Follow the training whose record is named, to its end."""
    os.nice(10)  # the training has priority
    record = load_pending(Path(sys.argv[1]))
    # Locked as long as this process lives: no other process writes the run.
    with FileLock(record.lock):
        follow(record)
    os._exit(0)  # at a normal exit MLflow would close the run


def follow(record: PendingRun) -> None:
    """Send every epoch; while the store is unreachable, try again later."""
    stream: Stream | None = None
    wait = POLL
    while not (end := wait_for_end(wait)):
        if not HISTORY.exists():
            continue
        try:
            stream = stream or begin(record)
            stream.send()
            wait = POLL
        except UserError as error:
            if wait == POLL:
                report(f"{error}; training continues, and `log` will upload the missing data")
            stream, wait = None, PAUSE
    with suppress(UserError):
        finish(record, stream, end)


def finish(record: PendingRun, stream: "Stream | None", end: str) -> None:
    """Send what is left of a training that has ended, and close the run if it has failed.

    Nothing is begun now that `log` would do as well. It closes the run of a finished training,
    unless it or the evaluation was interrupted: then there is a model.
    """
    if end == "FAILED" or record.model_sha256:
        stream = stream or begin(record)
    if stream and end != "FINISHED":  # first: what is sent below may fail, or take too long
        stream.store.close(stream.run.info.run_id, end)
    if stream:
        stream.send()


def wait_for_end(seconds: float) -> str:
    """The status of the training, FINISHED, FAILED or KILLED; "" if it has not ended by then."""
    ended, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read() or "KILLED" if ended else ""


def begin(record: PendingRun) -> "Stream":
    """Begin the run, or continue that of the interrupted training."""
    # MLflow takes seconds to import, in which a short training has ended.
    from pipeline.tracking.stream import Stream  # noqa: PLC0415

    stream = Stream(record)
    report(f"streaming to MLflow run {stream.name}")
    return stream


def report(message: str) -> None:
    """Print a line next to the training's progress bar, which redraws itself below it."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{erase}train: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
