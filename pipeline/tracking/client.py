"""MLflow's store: where it is, the experiment in it, and how runs are found.

By default it is `mlflow.db` and `mlartifacts/` under the root of the repository. MLflow freezes an
experiment's artifact folder when the experiment is created, and a queued DVC experiment runs in a
folder that is deleted, so both paths are absolute. `MLFLOW_TRACKING_URI` and
`MLFLOW_EXPERIMENT_NAME` name others.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
FAILURES = (MlflowException, SQLAlchemyError, RequestException, OSError, ImportError, ValueError)
# The UI's table shows neither parameters nor metrics unless each is selected; this view has them.
# Its form is not documented: a version of MLflow that does not know it ignores it.
SHOWN = ("nll", "neg_elbo", "recon", "kl", "active_units", "frechet_distance")
COLUMNS = [f"metrics.`test/{name}`" for name in SHOWN]
COLUMNS += [f"params.`{name}`" for name in ("z_dim", "h_dim", "num_epochs", "seed")]
VIEW = {"orderByKey": COLUMNS[0], "orderByAsc": True, "selectedColumns": COLUMNS}
LOCAL_UI = "http://127.0.0.1:5000"  # `make ui`


class StoreError(UserError):
    """MLflow's store cannot be used: MLflow's own words, without addresses and passwords."""

    def __init__(self, message: str) -> None:
        super().__init__("MLflow", message)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into a StoreError. Also a decorator."""
    try:
        yield
    except FAILURES as error:
        raise StoreError(_words(error)) from error


class Store:
    """An MLflow store and the experiment in it. Its methods raise StoreError if they fail."""

    def __init__(self, client: MlflowClient, experiment_id: str, uri: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.uri = uri

    @store_errors()
    def find(self, tag: str, value: str) -> Run | None:
        """A run whose tag has this value: a finished one if there is one, then the oldest."""
        runs = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'")
        runs.sort(key=lambda run: (run.info.status != "FINISHED", run.info.start_time))
        return next(iter(runs), None)

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
    def close(self, run_id: str, status: str, ended: int | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED. ended: in milliseconds, by default now."""
        self.client.set_terminated(run_id, status, ended)

    @store_errors()
    def tag(
        self, run: Run, tags: Mapping[str, str], params: Mapping[str, object] | None = None
    ) -> None:
        """Set tags, and parameters that cannot be changed later, in one transaction."""
        new_tags = [RunTag(key, value) for key, value in tags.items()]
        new_params = [Param(key, str(value)) for key, value in (params or {}).items()]
        self.client.log_batch(run.info.run_id, tags=new_tags, params=new_params)

    def url(self, run: Run) -> str:
        """The page of a run: on the server, or of `make ui`."""
        server = re.sub(r"//.*@", "//", self.uri) if self.uri.startswith("http") else LOCAL_UI
        path = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        # Without workflowType the UI may open in its view for language models.
        return f"{server.rstrip('/')}/#/{path}?workflowType=machine_learning"


def experiments_of(run: Run) -> list[str]:
    """The DVC experiments of a run: the one that computed it, then those with its results."""
    return re.findall(r"[^, ]+", run.data.tags.get("dvc.exp_name", ""))


@store_errors()
def open_store(root: Path) -> Store:
    """The store that the environment names, or the one in `root`; it is created if necessary."""
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    # MLflow crashes if several processes create the tables of one database at once.
    with FileLock(folder / "mlflow.lock"):
        return existing_store(root) or _new_store(root)


@store_errors()
def existing_store(root: Path) -> Store | None:
    """The store that `open_store` would open; None if it would have to be created."""
    uri, file = _address(root)
    if file is not None and not file.exists():
        return None
    client = _client(uri)
    experiment = client.get_experiment_by_name(_experiment_name())
    return Store(client, experiment.experiment_id, uri) if experiment else None


def _new_store(root: Path) -> Store:
    uri, file = _address(root)
    if file is not None and not file.exists():
        # Tables are created in another file: a kill leaves no incomplete database.
        new = file.with_name(f"{file.name}.new")
        new.unlink(missing_ok=True)
        _client(f"sqlite:///{new}").search_experiments(max_results=1)
        new.replace(file)
    client = _client(uri)
    # A server knows where its artifacts go.
    location = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": json.dumps(VIEW)}
    tags = {
        # Without this tag the UI opens the experiment in its view for language models.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.sharedViewState.results": json.dumps(view),
    }
    return Store(client, client.create_experiment(_experiment_name(), location, tags), uri)


def _address(root: Path) -> tuple[str, Path | None]:
    """The URI of the store, and its file if it is an sqlite database; relative to `root`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:"):
        return uri, None
    url = make_url(uri)
    file = (root / str(url.database)).resolve()  # a link to another disk stays one
    return url.set(database=str(file)).render_as_string(hide_password=False), file


def _client(uri: str) -> MlflowClient:
    if uri.startswith(DATABASES):
        # If a database cannot be opened, MLflow would try for 100 seconds.
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        sqlalchemy.inspect(engine).get_table_names()
    return MlflowClient(tracking_uri=uri)


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mnist-vae"


def _words(error: BaseException) -> str:
    """The message of the first cause in one line, without addresses and passwords."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, KeyError):
        error = cause
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.sub(r"\S*://\S*", "<address>", words)
    # Pieces of scheme://user:password@host, also of a password that contains :, / or @.
    before_host = os.environ.get("MLFLOW_TRACKING_URI", "").rpartition("@")[0]
    for piece in re.findall(r"[^:/@]+", before_host)[2:]:
        words = words.replace(piece, "<password>")
    return words[:200]
