"""Follows a training in its own process and streams its metrics to MLflow, epoch by epoch.

Started by `pending_run.follow_training` with the path of the record. It reads the files that the
training writes and never delays it. It ends when its stdin is closed.
"""

import io
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.paths import HISTORY, SAMPLES
from pipeline.runtime.files import home
from pipeline.runtime.git import Source
from pipeline.runtime.pending_run import PATIENCE, PendingRun, load_pending
from pipeline.tracking.results import read_history, sample_pictures
from pipeline.tracking.run_note import short_name, tags_of

if TYPE_CHECKING:
    from pipeline.tracking.client import Store

POLL = 1.0  # seconds between two looks at the files
PAUSE = 30.0  # seconds before an unreachable store is tried again
STATUS = {"failed": "FAILED", "killed": "KILLED"}  # a finished training's run is closed by `log`


class Training:
    """The process that is followed. `end` is how it ended: "finished", "failed" or "killed"."""

    def __init__(self) -> None:
        self.end = ""
        self._ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self.end = sys.stdin.read() or "killed"
        # Even if a store hangs, this process does not outlive the training for long.
        threading.Timer(PATIENCE * 0.75, os._exit, [0]).start()
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; True if it has ended."""
        return self._ended.wait(seconds)


class Stream:
    """The MLflow run of a training: created, or that of an interrupted training continued."""

    def __init__(self, record: PendingRun) -> None:
        # MLflow takes seconds of CPU time to import, which the training needs.
        from pipeline.tracking import upload  # noqa: PLC0415
        from pipeline.tracking.client import open_store  # noqa: PLC0415

        self.upload = upload
        self.store: Store = open_store(home())
        source = record.git_source() or Source(record.experiment, "", "")
        tags = tags_of(record.fingerprint, record.provenance, source)
        tags["execution"] = record.execution
        self.name = record.experiment or short_name(load_params())
        run = self.store.begun(record.execution)
        if run is None:
            run = self.store.create(self.name, tags)
            upload.add_params(self.store, run, record.provenance["params"])
        else:
            self.store.reopen(run, self.name, tags)
        self.run = run
        self.points = upload.points_of(self.store, run)
        self.pictures: set[Path] = set()
        upload.record_system_metrics(self.store, run)

    def send(self, history: pd.DataFrame, times: dict[int, int]) -> None:
        """Send the epochs and pictures that are new."""
        points = self.upload.history_points(history, times)
        self.upload.add_points(self.store, self.run, points, self.points)
        self.points |= {(point.key, point.step) for point in points}
        last = history["epoch"].max()
        pictures = [picture for picture in sample_pictures(SAMPLES) if picture.step <= last]
        new = [picture for picture in pictures if picture.path not in self.pictures]
        if new:
            self.upload.add_pictures(self.store, self.run, new)
        self.pictures |= {picture.path for picture in new}


def main() -> None:
    """Follow the training of the record that is named, to its end."""
    os.nice(10)  # the training has priority
    training = Training()
    record = load_pending(Path(sys.argv[1]))
    if record is None:
        return
    try:
        # Held as long as this process lives: no other process writes the run.
        with FileLock(record.lock, timeout=PATIENCE):
            follow(training, record)
    except (OSError, UserError) as error:
        report(f"MLflow does not follow the training; `log` will upload everything ({error})")
    if training.end == "failed":
        record.remove()
    os._exit(0)  # at a normal exit MLflow would close the run


def follow(training: Training, record: PendingRun) -> None:
    """Send every epoch; if the store is unreachable, warn once and try again later."""
    stream: Stream | None = None
    times: dict[int, int] = {}  # when each epoch was seen first, in milliseconds
    warned, resume, over = False, 0.0, False
    while not over:
        over = training.wait(POLL)
        history = complete_lines()
        new = [int(epoch) for epoch in history["epoch"] if epoch not in times]
        times |= dict.fromkeys(new, time.time_ns() // 1_000_000)
        # At the end, nothing is begun that `log` would do as well.
        if history.empty or (stream is None and over) or time.monotonic() < resume:
            continue
        try:
            if stream is None:
                stream = Stream(record)
                report(f"streaming to MLflow run {stream.name}")
            stream.send(history, times)
        except UserError as error:
            stream, resume = None, time.monotonic() + PAUSE
            if not warned:
                report(
                    "MLflow is unreachable; training continues, and the `log` stage will upload "
                    f"the missing data ({error})"
                )
            warned = True
    if stream is not None and training.end in STATUS:
        with suppress(UserError):
            stream.store.close(stream.run.info.run_id, STATUS[training.end])


def complete_lines() -> pd.DataFrame:
    """The history without a line that is still being written."""
    with suppress(FileNotFoundError):
        text = HISTORY.read_text(encoding="utf-8").rpartition("\n")[0]
        if text:
            return read_history(io.StringIO(text))
    return pd.DataFrame({"epoch": []})


def report(message: str) -> None:
    """Print a line next to the training's progress bar, which redraws itself below it."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{erase}train: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
