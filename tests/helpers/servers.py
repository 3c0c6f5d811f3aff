"""Working servers on loopback: `mlflow server`, on sqlite or PostgreSQL."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import requests


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def mlflow_server(
    folder: Path, backend: str | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """`mlflow server` with its files in `folder`: the address, and the process."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", (folder / "served").as_uri()]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    # Else ten more processes start, each with MLflow imported: 40 s of a core, 2 GB.
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    address = f"http://127.0.0.1:{port}"
    with started(command, folder, env) as process:
        wait_for(f"{address}/health", process)
        yield address, process


@contextmanager
def started(
    command: list[str], folder: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """A process group that works in `folder` and is killed at the end."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def wait_for(url: str, process: subprocess.Popen) -> None:
    """Wait until a server answers, at most two minutes."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "the server has ended"
        with suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.2)
    raise AssertionError("no answer within two minutes")


@contextmanager
def postgres() -> Iterator[str]:
    """PostgreSQL with a password: the address. Skips if it is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    initdb = str(programs[0]) if programs else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder, password = Path(tempfile.mkdtemp(prefix="postgres-")), secrets.token_hex(8)
    (folder / "password").write_text(password)
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres")
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    port, data = free_port(), str(folder / "data")
    options = ["-U", "mlflow", "-A", "scram-sha-256", "--pwfile", str(folder / "password")]
    create = [*as_user, initdb, "-D", data, *options]
    subprocess.run(create, check=True, capture_output=True, cwd=folder)
    server = [*as_user, str(Path(initdb).with_name("postgres")), "-D", data, "-h", "127.0.0.1"]
    address = f"postgresql://mlflow:{password}@127.0.0.1:{port}/postgres"
    with started([*server, "-p", str(port), "-k", str(folder)], folder):
        for _ in range(300):
            with suppress(psycopg.OperationalError):
                psycopg.connect(address).close()
                break
            time.sleep(0.1)
        yield address
    shutil.rmtree(folder, ignore_errors=True)
