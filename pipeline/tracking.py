"""The only door to MLflow: one call mirrors one finished execution of the pipeline to one run.

By default the store is `mlflow.db` and `mlartifacts/` in the root it is handed, both absolute: MLflow freezes an
experiment's artifact folder when the experiment is made, and a queued DVC experiment works in a folder that is
deleted. `MLFLOW_TRACKING_URI` names another store.
"""

import getpass
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by the import

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from PIL import Image
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

EXPERIMENT = "mnist-vae"
STORE_ERRORS = (MlflowException, SQLAlchemyError, RequestException, OSError)
BATCH = 1000  # metrics that MLflow takes in one call


class Picture(NamedTuple):
    """A PNG that shows `key` after `step` epochs: the UI lays the steps of one key side by side."""

    key: str
    step: int
    path: Path


@dataclass(frozen=True)
class Execution:
    """What one run holds: metric names are `split/quantity`, a record of `history` is one epoch, with its `epoch`."""

    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    pictures: Sequence[Picture]
    files: Sequence[tuple[Path, str]]  # (file, artifact folder)


class StoreError(Exception):
    """MLflow's store cannot be used; one line says why, without an address, which may hold a password."""


def log_execution(execution: Execution, root: Path) -> str:
    """Mirror `execution` to a new MLflow run and return the run's id.

    The run ends FINISHED when everything is there, FAILED when something could not be written.
    Raises StoreError where the store cannot be used.
    """
    # A server that is away costs seconds; MLflow's own patience is four minutes a call, or twenty.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    try:
        client, experiment_id = _open(uri, root)
        run_id: str = client.create_run(
            experiment_id, run_name=execution.name, tags={"mlflow.user": _user(), **execution.tags}
        ).info.run_id
        try:
            _fill(client, run_id, execution)
        except BaseException:
            with suppress(*STORE_ERRORS):  # the first error is the one to tell
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    except STORE_ERRORS as error:
        said = re.sub(r"\S*://\S*", "…", " ".join(str(error).split()))
        raise StoreError(said if len(said) <= 160 else f"{said[:160]} …") from error
    return run_id


def _open(uri: str, root: Path) -> tuple[MlflowClient, str]:
    """A client, and the experiment's id; store and experiment are made if they are not there."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new store tells of some fifty migrations
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    # Several processes that migrate one empty database at once crash; the first one in does it for all.
    with FileLock(root / ".dvc" / "tmp" / "mlflow.lock"):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, experiment.experiment_id
        # A server knows where its artifacts go; a database in the root keeps them beside it.
        location = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
        # Without the tag the UI opens the experiment in its view for language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _fill(client: MlflowClient, run_id: str, execution: Execution) -> None:
    now = time.time_ns() // 1_000_000
    points = [
        Metric(name, value, now, int(record["epoch"]))
        for record in execution.history
        for name, value in record.items()
        if name != "epoch"
    ]
    points += [Metric(name, value, now, 0) for name, value in execution.metrics.items()]
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in execution.params.items()])
    for start in range(0, len(points), BATCH):
        client.log_batch(run_id, metrics=points[start : start + BATCH])
    for picture in execution.pictures:
        with Image.open(picture.path) as image:
            client.log_image(run_id, image, key=picture.key, step=picture.step, synchronous=True)
    for path, folder in execution.files:
        client.log_artifact(run_id, str(path), folder)
