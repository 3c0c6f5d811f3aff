"""Where MLflow's store is, and whether it is there: asked at once, before MLflow is imported, which takes seconds.

MLflow itself is patient: four minutes for a server that refuses, twenty for one that is silent, a minute and a half
for a database.
"""

import os
from pathlib import Path

import requests
import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

TIMEOUT = 5  # seconds


class StoreError(Exception):
    """MLflow's store cannot be used; one line says why, without an address, which may hold a password."""


def address(root: Path) -> tuple[str, Path | None]:
    """The store's URI, and its file if it is an sqlite database: `MLFLOW_TRACKING_URI`, or `mlflow.db` in `root`.

    A relative path lies under `root`, wherever the process works. Raises StoreError for what is no address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite"):
        return uri, None
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError) as error:
        raise StoreError("MLFLOW_TRACKING_URI is no address of a store") from error
    if not url.database or url.database.startswith((":", "file:")):
        return uri, None
    file = root / url.database
    return url.set(database=str(file)).render_as_string(hide_password=False), file


def ask(root: Path) -> bool:
    """Whether the store is there already; False for a database that has yet to be made.

    Raises StoreError where it does not answer, or is broken.
    """
    uri, file = address(root)
    if uri.startswith(("http://", "https://")):
        _ask_server(uri)
        return True
    if file is not None and not file.exists():
        if not file.parent.is_dir():
            raise StoreError("the folder of the database that MLFLOW_TRACKING_URI names does not exist")
        return False
    return _ask_database(uri)


def _ask_server(uri: str) -> None:
    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT).status_code
    except requests.Timeout as error:
        raise StoreError(f"the server that MLFLOW_TRACKING_URI names does not answer within {TIMEOUT} s") from error
    except (requests.RequestException, ValueError) as error:
        raise StoreError("the server that MLFLOW_TRACKING_URI names cannot be reached") from error
    if status >= 500:
        raise StoreError(f"the server that MLFLOW_TRACKING_URI names answers {status}")


def _ask_database(uri: str) -> bool:
    which = "that MLFLOW_TRACKING_URI names" if os.environ.get("MLFLOW_TRACKING_URI") else "mlflow.db"
    try:
        arguments = {"connect_timeout": TIMEOUT} if uri.startswith(("postgresql", "mysql")) else {}
        engine = sqlalchemy.create_engine(uri, connect_args=arguments, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            return "experiments" in sqlalchemy.inspect(connection).get_table_names()
    except ImportError as error:
        raise StoreError(f"the database {which} needs a driver: pip install {error.name}") from error
    except (SQLAlchemyError, ValueError, OSError) as error:  # a port that is no number, say; its text would quote it
        raise StoreError(f"the database {which} cannot be opened") from error
