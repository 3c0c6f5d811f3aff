"""Where MLflow's store is, and whether this version of MLflow and this clone may use it.

By default it is `mlflow.db` under the root of the repository. A queued DVC experiment runs in a
folder that is deleted, so all paths are absolute. `MLFLOW_TRACKING_URI` names another store.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow.store
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import get_local_path_or_none
from sqlalchemy.engine import URL, make_url

from pipeline.errors import UserError, without_password

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SUPPORTED = "use http(s)://SERVER, sqlite:///FILE, postgresql://..., mysql://... or mssql://..."
TYPED = '"${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"'  # the address, in a shell
REBUILD = "mv mlflow.db mlflow.db.$(date +%s) && python -m pipeline log-all"


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


def locate(root: Path) -> tuple[str, Path | None]:
    """The URI of the store, and its file if it is an sqlite database; relative to `root`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    uri = re.sub(r"^\w+(?=[:+])", lambda kind: kind[0].lower(), uri)
    if scheme(uri) != "sqlite":
        return uri, None
    url = make_url(uri)
    file = (root / (url.database or ".")).resolve()  # a link to another disk stays one
    is_path = url.database and not url.database.startswith((":memory:", "file:"))
    if not is_path or not file.parent.is_dir() or ("?" in uri and not url.query):
        missing = "names no file in a folder that exists (write % as %25, ? as %3F)"
        raise StoreError(f"MLFLOW_TRACKING_URI {missing}: {SUPPORTED}")
    return sqlite_uri(url, file), file


def sqlite_uri(url: URL, file: Path) -> str:
    """The URI with another file."""
    # MLflow takes the quoted path of `sqlite:///` for a folder to be created, but not this one.
    url = url.set(drivername=f"sqlite+{url.get_driver_name()}", database=str(file))
    return url.render_as_string(hide_password=False)


def scheme(uri: str) -> str:
    """The kind of a store: a database, http, ..."""
    return urlsplit(uri).scheme.partition("+")[0]


def connect(uri: str) -> MlflowClient:
    """A client of the store. Raises StoreError if this version of MLflow cannot use it."""
    if scheme(uri) in DATABASES:
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


def check_location(location: str, root: Path, file: Path | None) -> None:
    """Raise StoreError if artifacts would be written into another clone, or into one that moved."""
    if (local := get_local_path_or_none(location)) is None:
        return
    folder, own = Path(local), file.parent if file else root
    clone = next((each for each in folder.parents if (each / ".dvc").is_dir()), own)
    if clone in (root, own) and (own in folder.parents or folder.is_dir()):
        return
    is_default = file == (root / "mlflow.db").resolve()
    advice = REBUILD if is_default else "use an MLflow server, or another MLFLOW_EXPERIMENT_NAME"
    raise StoreError("the artifacts are of another folder, or this one was moved or copied", advice)


def _words(error: BaseException) -> str:
    """The message of the first cause in one line, without addresses and passwords."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, KeyError):
        error = cause
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    words = str(error).strip() or type(error).__name__
    return without_password(words, os.environ.get("MLFLOW_TRACKING_URI", ""))[:200]
