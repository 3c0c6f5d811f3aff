"""The door to MLflow: the store, and which run is whose. What a run holds is projection.py's business.

By default the store is `mlflow.db` and `mlartifacts/` in the root it is handed, both absolute: MLflow freezes an
experiment's artifact folder when the experiment is made, and a queued DVC experiment works in a folder that is
deleted. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` name others.
"""

import getpass
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Read by the import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, RunTag
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking.server import StoreError, address, ask, typed

# The UI's table shows neither parameters nor metrics until they are ticked one by one; this view, which is saved with
# the experiment and offered under "Views", has them. Its form is the UI's own: should that change, it is ignored.
RESULTS_VIEW = {
    "orderByKey": "metrics.`test/nll`",
    "orderByAsc": True,
    "selectedColumns": [
        *(f"metrics.`test/{name}`" for name in ("nll", "neg_elbo", "kl", "fd_judge")),
        *(f"params.`{name}`" for name in ("z_dim", "h_dim", "h_layers", "activation", "num_epochs", "batch_size")),
        *(f"params.`{name}`" for name in ("learning_rate", "val_size", "seed")),
    ],
}
STORE_ERRORS = (MlflowException, SQLAlchemyError, RequestException, OSError, Timeout, ImportError)


@contextmanager
def told() -> Iterator[None]:
    """Whatever MLflow and what lies under it raise becomes a StoreError. Also a decorator."""
    try:
        yield
    except STORE_ERRORS as error:
        said = re.sub(r"\S*://\S*", "…", " ".join(str(error).split()))
        for secret in _secrets():
            said = said.replace(secret, "…")
        raise StoreError(said if len(said) <= 160 else f"{said[:160]} …") from error


def _secrets() -> list[str]:
    """What must not be told, also where an error quotes no more than a piece of the address."""
    named = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    userinfo, at, _ = os.environ.get("MLFLOW_TRACKING_URI", "").rpartition("@")
    return [secret for secret in [*named, *(re.split(r"[:/@]+", userinfo)[2:] if at else [])] if secret]


class Store:
    """An MLflow store, and the experiment in it. Every method raises StoreError where it cannot be used."""

    def __init__(self, client: MlflowClient, experiment_id: str, uri: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.uri = uri

    @told()
    def begun(self, execution: str) -> Run | None:
        """The run that was begun for this execution, if this store has it."""
        return self._first(f"tags.execution = '{execution}'")

    @told()
    def find(self, fingerprint: str, results: str) -> Run | None:
        """A run of exactly these results: a finished one before one that is not, then the oldest."""
        return self._first(f"tags.fingerprint = '{fingerprint}' and tags.`results.sha256` = '{results}'")

    def _first(self, wanted: str) -> Run | None:
        found = self.client.search_runs([self.experiment_id], wanted)
        return min(found, key=lambda run: (run.info.status != "FINISHED", run.info.start_time), default=None)

    @told()
    def runs(self) -> list[Run]:
        """Every run of the experiment that has not been deleted."""
        found = page = self.client.search_runs([self.experiment_id])
        while page.token:
            page = self.client.search_runs([self.experiment_id], page_token=page.token)
            found += page
        return list(found)

    @told()
    def artifacts(self) -> str:
        """Where the artifacts of new runs go, as an address."""
        return str(self.client.get_experiment(self.experiment_id).artifact_location)

    @told()
    def create(self, name: str, tags: Mapping[str, str], started: int | None = None) -> Run:
        """A new run, RUNNING; `started` in milliseconds, now if it is not given."""
        tags = {"mlflow.user": _user(), **tags}
        return self.client.create_run(self.experiment_id, run_name=name, tags=tags, start_time=started)

    @told()
    def reopen(self, run: Run, name: str, tags: Mapping[str, str]) -> Run:
        """Let a run that was begun go on, maybe in another DVC experiment than the one that was killed."""
        self.client.update_run(run.info.run_id, status="RUNNING", name=name)
        self.tag(run, tags)
        return run

    @told()
    def close(self, run_id: str, status: str, ended: int | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status, ended)

    @told()
    def tag(self, run: Run, tags: Mapping[str, str]) -> None:
        """Add tags to a run, or change them."""
        self.client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    @told()
    def link(self, run: Run, experiment: str, paragraph: str) -> bool:
        """Add a DVC experiment to the run whose results it was given; False where it is there already."""
        names = experiments_of(run)
        if experiment in names:
            return False
        note = f"{run.data.tags.get('mlflow.note.content', '')}\n\n{paragraph}"
        tags = [RunTag("dvc.exp_name", ", ".join([*names, experiment])), RunTag("mlflow.note.content", note)]
        self.client.log_batch(run.info.run_id, tags=tags)  # one transaction
        return True


def experiments_of(run: Run) -> list[str]:
    """The DVC experiments that a run belongs to: the one that computed it, then those that were given its results."""
    return [name for name in run.data.tags.get("dvc.exp_name", "").split(", ") if name]


@told()
def open_store(root: Path) -> Store:
    """The store that the environment names, or the one in `root`; store and experiment are made if need be."""
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes that migrate one empty database at once crash; the first one in does it for all.
    with FileLock(folder / "mlflow.lock"):
        ask(root)
        uri, file = address(root)
        if file is not None:
            _make_sqlite(file)
        client, experiment = _connect(uri)
        if experiment is not None:
            return Store(client, experiment.experiment_id, uri)
        # A server knows where its artifacts go; a database in the root keeps them beside it.
        location = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
        tags = {
            # Without it the UI opens the experiment in its view for language models.
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.sharedViewState.results": json.dumps({
                "name": "Results", "createdAt": 0, "updatedAt": 0, "state": json.dumps(RESULTS_VIEW),
            }),
        }  # fmt: skip
        return Store(client, client.create_experiment(_name(), artifact_location=location, tags=tags), uri)


@told()
def existing_store(root: Path) -> Store | None:
    """The store that `open_store` would open, to look at it: None where it would have to be made."""
    if not ask(root):
        return None
    uri, _ = address(root)
    client, experiment = _connect(uri)
    return Store(client, experiment.experiment_id, uri) if experiment else None


def _connect(uri: str) -> tuple[MlflowClient, Experiment | None]:
    # A server that goes away costs seconds; MLflow's own patience is four minutes a call, or twenty.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):  # a new store tells of some fifty migrations
        logging.getLogger(chatty).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(_name())
    # MLflow keeps one that was deleted under its name: no run can be made in it, and no other beside it.
    if experiment is not None and experiment.lifecycle_stage == LifecycleStage.DELETED:
        restore = typed(f"experiments restore --experiment-id {experiment.experiment_id}")
        raise StoreError(f"the experiment {_name()} was deleted in MLflow; this restores it and its runs", restore)
    return client, experiment


def _name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mnist-vae"


def _make_sqlite(file: Path) -> None:
    """Make the tables of a new database beside it and move it into place: a kill leaves none, and never half of one."""
    if file.exists():
        return
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
    new.replace(file)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
