"""The MLflow run of a training that is still running."""

from collections.abc import Mapping

import mlflow
import pandas as pd

from pipeline.params import load_params
from pipeline.paths import SAMPLES
from pipeline.runtime.files import home
from pipeline.runtime.git import Source
from pipeline.runtime.pending_run import PendingRun
from pipeline.tracking.client import open_store, store_errors
from pipeline.tracking.results import Picture, sample_pictures
from pipeline.tracking.run_note import short_name, tags_of
from pipeline.tracking.upload import add_pictures, add_points, history_points, points_of


class Stream:
    """Creates the run, or continues that of an interrupted training, and sends what is new."""

    @store_errors()
    def __init__(self, record: PendingRun) -> None:
        self.store = open_store(home())
        self.name = record.experiment or short_name(load_params())
        source = Source(**record.source or {"experiment": "", "baseline": "", "diff": ""})
        tags = tags_of(record.fingerprint, record.provenance, source)
        tags["execution"] = record.execution
        run = self.store.find("execution", record.execution)
        if run is None:
            run = self.store.client.create_run(self.store.experiment_id, run_name=self.name)
        self.store.tag(run, tags, record.provenance["params"])
        self.store.client.update_run(run.info.run_id, status="RUNNING", name=self.name)
        self.run = run
        self.points = points_of(self.store, run)
        self.pictures: set[Picture] = set()
        mlflow.set_tracking_uri(self.store.uri)
        if mlflow.active_run() is None:
            mlflow.start_run(run.info.run_id, log_system_metrics=True)

    @store_errors()
    def send(self, history: pd.DataFrame, times: Mapping[int, int]) -> None:
        """Send the new epochs, with the times at which they were seen, and their pictures."""
        points = history_points(history, times)
        add_points(self.store, self.run, points, self.points)
        self.points |= {(point.key, point.step) for point in points}
        last = history["epoch"].max()
        new = {each for each in sample_pictures(SAMPLES) if each.step <= last} - self.pictures
        if new:
            add_pictures(self.store, self.run, sorted(new))
            self.pictures |= new
