"""MLflow's store: where it is, the experiment in it, and how runs are found.

By default it is `mlflow.db` under the root of the repository. MLflow freezes an experiment's
artifact folder when the experiment is created, and a queued DVC experiment runs in a folder that is
deleted, so all paths are absolute. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` name others.
The artifacts of an sqlite database are in `mlartifacts/` beside its file.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow.store
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.file_utils import get_local_path_or_none
from requests import HTTPError
from sqlalchemy.engine import URL, make_url

from pipeline.errors import UserError

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SUPPORTED = "use http(s)://SERVER, sqlite:///FILE, postgresql://..., mysql://... or mssql://..."
REFUSED = (401, 403, 404, 405, 501)  # HTTP status: no permission, or no such feature
TYPED = '"${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"'  # the address, in a shell
REBUILD = "mv mlflow.db mlflow.db.$(date +%s) && python -m pipeline log-all"
# The UI's table shows neither parameters nor metrics unless each is selected; this view has them.
# Its form is not documented: a version of MLflow that does not know it ignores it.
SHOWN = ("nll", "neg_elbo", "recon", "kl", "active_units", "frechet_distance")
COLUMNS = [f"metrics.`test/{name}`" for name in SHOWN]
COLUMNS += [f"params.`{name}`" for name in ("z_dim", "h_dim", "num_epochs", "seed")]
VIEW = {"orderByKey": COLUMNS[0], "orderByAsc": True, "selectedColumns": COLUMNS}
LOCAL_UI = "http://127.0.0.1:5000"  # `make ui`


class StoreError(UserError):
    """MLflow's store cannot be used: what happened, without passwords, and the next command."""

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__("MLflow", f"{message}: {command}" if command else message)
        self.message = message
        self.command = command


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into a StoreError. Also a decorator."""
    try:
        yield
    except Exception as error:  # libraries of databases and artifact stores have types of their own
        if isinstance(error, UserError):
            raise
        raise StoreError(_words(error)) from error


@contextmanager
def optional(part: str, left_out: list[str]) -> Iterator[None]:
    """Append `part` to `left_out` if the store refuses what the block does: it always would."""
    try:
        yield
    except Exception as error:
        if not _is_refusal(error):
            raise
        left_out.append(part)


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, RestException) and "error_code" not in error.json:
        return True  # not MLflow's answer: the server does not know the request
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in REFUSED
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in REFUSED
    return isinstance(error, PermissionError)


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

    def keeps(self, run: Run) -> bool:
        """Whether the artifacts of a run are files here, not those of a server."""
        is_local = get_local_path_or_none(run.info.artifact_uri) is not None
        return is_local and _scheme(self.uri) in DATABASES

    def url(self, run: Run) -> str:
        """The page of a run: on the server, or of `make ui`."""
        server = urlsplit(self.uri if _scheme(self.uri) in ("http", "https") else LOCAL_UI)
        host = server.netloc.rpartition("@")[2]  # without user and password
        base = server._replace(netloc=host, path=server.path.rstrip("/")).geturl()
        path = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        # Without workflowType the UI may open in its view for language models.
        return f"{base}/#/{path}?workflowType=machine_learning"


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
    if file and not file.exists():
        return None
    client = _client(uri)
    experiment = client.get_experiment_by_name(_experiment_name())
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore -x {experiment.experiment_id}"
        raise StoreError("the experiment is deleted", f"MLFLOW_TRACKING_URI={TYPED} {restore}")
    if _scheme(uri) in DATABASES:
        _check_location(experiment.artifact_location, root, file)
    return Store(client, experiment.experiment_id, uri)


def _new_store(root: Path) -> Store:
    uri, file = _address(root)
    if file and not file.exists():
        # Tables are created in another file: a kill leaves no incomplete database.
        new = file.with_name(f"{file.name}.new")
        new.unlink(missing_ok=True)
        _client(_sqlite(make_url(uri), new)).search_experiments(max_results=1)
        new.replace(file)
    client = _client(uri)
    folder = file.parent if file else root
    # A server knows where its artifacts go.
    location = (folder / "mlartifacts").as_uri() if _scheme(uri) in DATABASES else None
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": json.dumps(VIEW)}
    tags = {
        # Without this tag the UI opens the experiment in its view for language models.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.sharedViewState.results": json.dumps(view),
    }
    return Store(client, client.create_experiment(_experiment_name(), location, tags), uri)


def _address(root: Path) -> tuple[str, Path | None]:
    """The URI of the store, and its file if it is an sqlite database; relative to `root`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    if _scheme(uri) != "sqlite":
        return uri, None
    url = make_url(uri)
    file = (root / (url.database or ".")).resolve()  # a link to another disk stays one
    is_path = url.database and not url.database.startswith((":memory:", "file:"))
    if not is_path or not file.parent.is_dir() or ("?" in uri and not url.query):
        missing = "names no file in a folder that exists (write % as %25, ? as %3F)"
        raise StoreError(f"MLFLOW_TRACKING_URI {missing}: {SUPPORTED}")
    return _sqlite(url, file), file


def _sqlite(url: URL, file: Path) -> str:
    # MLflow takes the quoted path of `sqlite:///` for a folder to be created, but not this one.
    url = url.set(drivername=f"sqlite+{url.get_driver_name()}", database=str(file))
    return url.render_as_string(hide_password=False)


def _scheme(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[0]


def _client(uri: str) -> MlflowClient:
    if _scheme(uri) in DATABASES:
        # If a database cannot be opened, MLflow would try for 100 seconds.
        _check_tables(sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool))
        return MlflowClient(tracking_uri=uri)
    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise StoreError(f"does not support this MLFLOW_TRACKING_URI: {SUPPORTED}") from error


def _check_tables(engine: sqlalchemy.Engine) -> None:
    """Raise StoreError if the tables of a database are not those of this version of MLflow.

    MLflow would add its tables to any database, and upgrade one that others use as well.
    """
    tables = sqlalchemy.inspect(engine).get_table_names()
    if tables and "experiments" not in tables:
        raise StoreError(f"the database belongs to another program: {SUPPORTED}")
    scripts = ScriptDirectory(str(Path(mlflow.store.__file__).with_name("db_migrations")))
    with engine.connect() as connection:
        version = MigrationContext.configure(connection).get_current_revision()
    if version in (None, scripts.get_current_head()):
        return
    if version in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError("the database is of an older MLflow", f"mlflow db upgrade {TYPED}")
    raise StoreError("the database is of a newer MLflow", "python -m pip install -U mlflow")


def _check_location(location: str, root: Path, file: Path | None) -> None:
    """Raise StoreError if artifacts would be written into another clone, or into one that moved."""
    if (local := get_local_path_or_none(location)) is None:
        return
    folder, own = Path(local), file.parent if file else root
    clone = next((each for each in folder.parents if (each / ".dvc").is_dir()), root)
    if clone in (root, own) and (own in folder.parents or folder.is_dir()):
        return
    if file == (root / "mlflow.db").resolve():
        raise StoreError("mlflow.db is of another folder: this one was moved or copied", REBUILD)
    message = f"the artifacts of this experiment are in another clone, or gone: {folder}"
    raise StoreError(message, "use an MLflow server, or another MLFLOW_EXPERIMENT_NAME")


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
