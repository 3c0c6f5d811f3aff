"""Streams a running training to its MLflow run; the follower decides when."""

import io
import time

import mlflow
import pandas as pd

from pipeline.params import DEFAULTS, load_params
from pipeline.paths import HISTORY, SAMPLES
from pipeline.runtime.files import home
from pipeline.runtime.git import Source, here
from pipeline.runtime.pending_run import PendingRun
from pipeline.tracking import run_note, upload
from pipeline.tracking.address import store_errors
from pipeline.tracking.client import open_store, optional
from pipeline.tracking.results import read_history, sample_pictures


class Stream:
    """The MLflow run of a training: a new one, or that of the interrupted training."""

    @store_errors()
    def __init__(self, record: PendingRun) -> None:
        self.store = store = open_store(home())
        source = Source(**record.source) if record.source else here()
        self.name = run_note.name_of(source, load_params())
        tags = run_note.tags_of(record.fingerprint, record.provenance, source)
        tags["execution"] = record.execution
        run = store.find("execution", record.execution)
        self.run = run or store.client.create_run(store.experiment_id, None, tags, self.name)
        run_id = self.run.info.run_id
        store.tag(self.run, tags, DEFAULTS | record.provenance["params"])
        store.client.update_run(run_id, status="RUNNING", name=self.name)
        self.points = upload.points_of(store, self.run)
        self.sent = -1  # the last epoch
        mlflow.set_tracking_uri(store.uri)
        if mlflow.active_run() is None:
            mlflow.start_run(run_id, log_system_metrics=True)

    @store_errors()
    def send(self) -> None:
        """Send the new epochs of the history, and their pictures."""
        history = complete_epochs()
        last, now = len(history), time.time_ns() // 1_000_000
        if last == self.sent:
            return
        points = upload.history_points(history[history["epoch"] > self.sent], now)
        upload.add_points(self.store, self.run, points, self.points)
        pictures = [each for each in sample_pictures(SAMPLES) if self.sent < each.step <= last]
        with optional("pictures", []):  # `log` reports it
            upload.add_pictures(self.store, self.run, pictures)
        self.sent = last


def complete_epochs() -> pd.DataFrame:
    """The history without a line that is still being written."""
    text = HISTORY.read_text(encoding="utf-8") if HISTORY.exists() else ""
    return read_history(io.StringIO(text[: text.rfind("\n") + 1] or "epoch\n"))
