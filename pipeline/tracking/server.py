"""Where MLflow's store is, and whether it is there: asked at once, before MLflow is imported, which takes seconds.

MLflow itself is patient: four minutes for a server that refuses, twenty for one that is silent, a minute and a half
for a database.
"""

import os
import re
from pathlib import Path

import requests
import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

TIMEOUT = 5  # seconds


class StoreError(Exception):
    """MLflow's store cannot be used; one line says why, without an address, which may hold a password.

    `command`: what a person types to mend it, where that is known. The line ends with it.
    """

    def __init__(self, why: str, command: str = "") -> None:
        super().__init__(f"{why}: {command}" if command else why)
        self.why = why
        self.command = command


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


def typed(arguments: str) -> str:
    """What a person types in the root to have MLflow's own command act on the store."""
    store = "" if os.environ.get("MLFLOW_TRACKING_URI") else "MLFLOW_TRACKING_URI=sqlite:///mlflow.db "
    return f"{store}mlflow {arguments}"


def _ask_server(uri: str) -> None:
    verify, cert = _tls()
    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT, verify=verify, cert=cert).status_code
    except requests.Timeout as error:
        raise StoreError(f"the server that MLFLOW_TRACKING_URI names does not answer within {TIMEOUT} s") from error
    except requests.exceptions.SSLError as error:
        # OpenSSL's reason, as far as it names no host.
        reason = re.search(r"\[(?:SSL|X509)[^]]*\] ([^,('\"]*[^,('\" ])", str(error))
        raise StoreError(
            f"TLS with the server that MLFLOW_TRACKING_URI names fails ({reason[1] if reason else 'no reason given'}): "
            "MLFLOW_TRACKING_SERVER_CERT_PATH names the certificates to trust, MLFLOW_TRACKING_CLIENT_CERT_PATH your "
            "own, and MLFLOW_TRACKING_INSECURE_TLS=true trusts any server"
        ) from error
    except (requests.RequestException, ValueError) as error:
        # With TLS 1.3 a server that misses the client's certificate has shaken hands already, and may just hang up.
        hint = "; if it asks for a certificate, MLFLOW_TRACKING_CLIENT_CERT_PATH names yours"
        said = f"the server that MLFLOW_TRACKING_URI names cannot be reached{hint if uri.startswith('https:') else ''}"
        raise StoreError(said) from error
    except OSError as error:  # `requests` looks whether they are there
        raise StoreError(
            "a file of certificates is not there: MLFLOW_TRACKING_SERVER_CERT_PATH, MLFLOW_TRACKING_CLIENT_CERT_PATH "
            "or REQUESTS_CA_BUNDLE names it"
        ) from error
    if status >= 500:
        raise StoreError(f"the server that MLFLOW_TRACKING_URI names answers {status}")


def _tls() -> tuple[bool | str, str | None]:
    """`verify` and `cert`, as MLflow's own client hands them to `requests`.

    Raises StoreError for what MLflow refuses, in part with a ValueError that nobody expects of it.
    """
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "false").lower()
    if insecure not in ("true", "1", "false", "0"):
        raise StoreError("MLFLOW_TRACKING_INSECURE_TLS must be true or false")
    trusted = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    if trusted is not None and insecure in ("true", "1"):
        raise StoreError("only one of MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH can be set")
    verify = insecure in ("false", "0") if trusted is None else trusted
    return verify, os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")


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
