"""MLflow's store: where it is, the experiment in it, and how runs are found.

By default it is `mlflow.db` and `mlartifacts/` under the root of the repository. MLflow freezes an
experiment's artifact folder when the experiment is created, and a queued DVC experiment runs in a
folder that is deleted, so both paths are absolute. `MLFLOW_TRACKING_URI` and
`MLFLOW_EXPERIMENT_NAME` name others.
"""

import getpass
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError

T = TypeVar("T")

LOCAL_UI = "http://127.0.0.1:5000"  # `make ui`
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PATIENCE = 10.0  # seconds to reach a store that is not a local file
FAILURES = (MlflowException, SQLAlchemyError, RequestException, OSError, ImportError, ValueError)


class StoreError(UserError):
    """MLflow's store cannot be used: MLflow's own words, without addresses and secrets."""

    def __init__(self, message: str) -> None:
        super().__init__("MLflow", message)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn everything that MLflow and the libraries below it raise into a StoreError."""
    try:
        yield
    except FAILURES as error:
        raise StoreError(_words(error)) from error


class Store:
    """An MLflow store and the experiment in it. Every method raises StoreError if it fails."""

    def __init__(self, client: MlflowClient, experiment_id: str, uri: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.uri = uri

    @store_errors()
    def begun(self, execution: str) -> Run | None:
        """The run of this execution, complete or not."""
        return self._first(f"tags.execution = '{execution}'")

    @store_errors()
    def find(self, results_sha256: str) -> Run | None:
        """A run with exactly these results: finished ones first, then the oldest."""
        return self._first(f"tags.`results.sha256` = '{results_sha256}'")

    def _first(self, query: str) -> Run | None:
        runs = self.client.search_runs([self.experiment_id], query)
        runs.sort(key=lambda run: (run.info.status != "FINISHED", run.info.start_time))
        return runs[0] if runs else None

    @store_errors()
    def runs(self) -> list[Run]:
        """Every run of the experiment that is not deleted."""
        page = self.client.search_runs([self.experiment_id])
        runs = list(page)
        while page.token:
            page = self.client.search_runs([self.experiment_id], page_token=page.token)
            runs += page
        return runs

    @store_errors()
    def artifacts(self) -> str:
        """The address of the artifacts of new runs."""
        return str(self.client.get_experiment(self.experiment_id).artifact_location)

    @store_errors()
    def create(self, name: str, tags: Mapping[str, str], started: int | None = None) -> Run:
        """Create a run with the status RUNNING. started: in milliseconds, by default now."""
        tags = {"mlflow.user": _user(), **tags}
        return self.client.create_run(self.experiment_id, started, tags, name)

    @store_errors()
    def reopen(self, run: Run, name: str, tags: Mapping[str, str]) -> None:
        """Continue an interrupted run, perhaps under the name of another DVC experiment."""
        self.client.update_run(run.info.run_id, status="RUNNING", name=name)
        self.tag(run, tags)

    @store_errors()
    def close(self, run_id: str, status: str, ended: int | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status, ended)

    @store_errors()
    def tag(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set tags of a run, in one transaction."""
        pairs = [RunTag(key, value) for key, value in tags.items()]
        self.client.log_batch(run.info.run_id, tags=pairs)

    def link(self, run: Run, experiment: str, paragraph: str) -> bool:
        """Add a DVC experiment to the run that has its results; False if it is there already."""
        names = experiments_of(run)
        if experiment in names:
            return False
        note = f"{run.data.tags.get('mlflow.note.content', '')}\n\n{paragraph}"
        experiments = ", ".join([*names, experiment])
        self.tag(run, {"dvc.exp_name": experiments, "mlflow.note.content": note})
        return True

    def url(self, run: Run) -> str:
        """The page of a run in the browser: of the server, or of `make ui`."""
        path = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        # Without workflowType the UI may open in its view for language models.
        return f"{ui_address(self.uri)}/#/{path}?workflowType=machine_learning"


def experiments_of(run: Run) -> list[str]:
    """The DVC experiments of a run: the one that computed it, then those with its results."""
    names = run.data.tags.get("dvc.exp_name", "")
    return names.split(", ") if names else []


def ui_address(uri: str) -> str:
    """Where a browser finds the UI of a store: the server without a password, or `make ui`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL_UI
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


@store_errors()
def open_store(root: Path) -> Store:
    """The store that the environment names, or the one in `root`; it is created if necessary."""
    uri, file = _address(root)

    def connect() -> Store:
        # MLflow crashes if several processes create the tables of one database at once.
        with FileLock(_lock_folder(root) / "mlflow.lock"):
            if file is not None and not file.exists():
                _make_sqlite(file)
            client = _client(uri)
            experiment = client.get_experiment_by_name(_experiment_name())
            experiment_id = experiment.experiment_id if experiment else _create(client, uri, root)
        return Store(client, experiment_id, uri)

    return connect() if file else _with_deadline(connect)


@store_errors()
def existing_store(root: Path) -> Store | None:
    """The store that `open_store` would open; None if it would have to be created."""
    uri, file = _address(root)
    if file is not None and not file.exists():
        return None

    def connect() -> Store | None:
        client = _client(uri)
        experiment = client.get_experiment_by_name(_experiment_name())
        return Store(client, experiment.experiment_id, uri) if experiment else None

    return connect() if file else _with_deadline(connect)


def _address(root: Path) -> tuple[str, Path | None]:
    """The URI of the store, and its file if it is an sqlite database; relative to `root`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:"):
        return uri, None
    url = make_url(uri)
    file = root / (url.database or "")
    return url.set(database=str(file)).render_as_string(hide_password=False), file


def _client(uri: str) -> MlflowClient:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if uri.startswith(DATABASES):
        # MLflow itself would try for 100 seconds.
        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
    return MlflowClient(tracking_uri=uri)


def _create(client: MlflowClient, uri: str, root: Path) -> str:
    # A server knows where its artifacts go.
    location = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
    # Without this tag the UI opens the experiment in its view for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return client.create_experiment(_experiment_name(), location, tags)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mnist-vae"


def _make_sqlite(file: Path) -> None:
    """Create the tables in another file and rename it: a kill leaves no incomplete database."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    _client(f"sqlite:///{new}").search_experiments(max_results=1)
    new.replace(file)


def _lock_folder(root: Path) -> Path:
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _with_deadline(connect: Callable[[], T]) -> T:
    """Call it in a thread that is abandoned after PATIENCE seconds; then raises StoreError."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(connect())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(PATIENCE)
    except TimeoutError as error:
        if future.done():
            raise
        raise StoreError(f"no answer within {PATIENCE:.0f} s") from error


def _words(error: BaseException) -> str:
    """The message of the first cause in one line, without addresses and secrets."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.sub(r"\S*://\S*", "<address>", words)
    for secret in _secrets():
        words = words.replace(secret, "<secret>")
    return words if len(words) <= 200 else f"{words[:200]}..."


def _secrets() -> list[str]:
    names = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    secrets = [os.environ.get(name, "") for name in names]
    password = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).password or ""
    return [secret for secret in (*secrets, password, unquote(password)) if secret]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        return "unknown"
