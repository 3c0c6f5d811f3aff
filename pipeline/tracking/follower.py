"""Follows a training in its own process and streams its metrics to MLflow, epoch by epoch.

Started by `pending_run.follow_training` with the path of the record. It reads the files that the
training writes and never delays it. It ends when its stdin is closed; what it reads there is how
the training ended.
"""

import io
import os
import select
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import pandas as pd
from filelock import FileLock

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.paths import HISTORY, SAMPLES
from pipeline.runtime.files import home
from pipeline.runtime.git import Source
from pipeline.runtime.pending_run import PendingRun, load_pending
from pipeline.tracking import run_note, upload
from pipeline.tracking.client import open_store, store_errors
from pipeline.tracking.results import read_history, sample_pictures

POLL = 1.0  # seconds between two looks at the files
PAUSE = 30.0  # seconds before an unreachable store is tried again
STATUS = {"failed": "FAILED", "killed": "KILLED"}  # `log` closes the run of a finished training


def main() -> None:
    """Follow the training whose record is named, to its end."""
    os.nice(10)  # the training has priority
    record = load_pending(Path(sys.argv[1]))
    # Locked as long as this process lives: no other process writes the run.
    with FileLock(record.lock):
        stream, end = follow(record)
        if stream and end in STATUS:
            with suppress(UserError):
                stream.store.close(stream.run.info.run_id, STATUS[end])
    if end == "failed":
        record.remove()
    os._exit(0)  # at a normal exit MLflow would close the run


class Stream:
    """The MLflow run of a training: a new one, or that of the interrupted training."""

    @store_errors()
    def __init__(self, record: PendingRun) -> None:
        self.store = open_store(home())
        name = record.experiment or run_note.short_name(load_params())
        source = Source(**record.source or {"experiment": "", "baseline": "", "diff": ""})
        tags = run_note.tags_of(record.fingerprint, record.provenance, source)
        tags["execution"] = record.execution
        run = self.store.find("execution", record.execution)
        if run is None:
            run = self.store.client.create_run(self.store.experiment_id, run_name=name)
        self.store.tag(run, tags, record.provenance["params"])
        self.store.client.update_run(run.info.run_id, status="RUNNING", name=name)
        self.run = run
        self.points = upload.points_of(self.store, run)
        self.sent = -1  # the last epoch
        mlflow.set_tracking_uri(self.store.uri)
        if mlflow.active_run() is None:
            mlflow.start_run(run.info.run_id, log_system_metrics=True)
        report(f"streaming to MLflow run {name}")

    @store_errors()
    def send(self, history: pd.DataFrame) -> None:
        """Send the new epochs and their pictures."""
        last, now = history["epoch"].max(), time.time_ns() // 1_000_000
        points = upload.history_points(history[history["epoch"] > self.sent], now)
        upload.add_points(self.store, self.run, points, self.points)
        pictures = [each for each in sample_pictures(SAMPLES) if self.sent < each.step <= last]
        if pictures:
            upload.add_pictures(self.store, self.run, pictures)
        self.sent = last


def follow(record: PendingRun) -> tuple[Stream | None, str]:
    """Send every epoch; while the store is unreachable, try again later.

    Returns the MLflow run, if it was begun, and how the training ended.
    """
    stream: Stream | None = None
    wait = POLL
    while True:
        ended = bool(select.select([sys.stdin], [], [], wait)[0])
        history = complete_lines()
        # At the end nothing is begun, because `log` would do it as well.
        if len(history) and (stream or not ended):
            try:
                stream = stream or Stream(record)
                stream.send(history)
                wait = POLL
            except UserError as error:
                if wait == POLL:
                    report(f"{error}; training continues, and `log` will upload the missing data")
                stream, wait = None, PAUSE
        if ended:
            return stream, sys.stdin.read() or "killed"


def complete_lines() -> pd.DataFrame:
    """The history without a line that is still being written."""
    text = HISTORY.read_text(encoding="utf-8") if HISTORY.exists() else ""
    return read_history(io.StringIO(text[: text.rfind("\n") + 1] or "epoch\n"))


def report(message: str) -> None:
    """Print a line next to the training's progress bar, which redraws itself below it."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{erase}train: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
