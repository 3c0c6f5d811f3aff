"""Tracking servers that work: `mlflow server`, on sqlite or on a PostgreSQL of its own, on loopback, also over TLS."""

import datetime
import ipaddress
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
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def certificate(file: Path) -> Path:
    """A certificate of 127.0.0.1 that is signed by itself, with its key: a server's, a client's, and what to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(*pem) + made.public_bytes(pem[0]))
    return file


@contextmanager
def mlflow_server(
    folder: Path, backend: str | None = None, pem: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """`mlflow server` with served artifacts under `folder`: its address, and its process to kill.

    With `pem`, a certificate and its key, it talks TLS, and to nobody who does not show the same one.
    """
    port = free_port()
    log = (folder / "server.log").open("w")
    tls = f"--ssl-certfile {pem} --ssl-keyfile {pem} --ssl-ca-certs {pem} --ssl-cert-reqs 2"  # ssl.CERT_REQUIRED
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}",
            "--artifacts-destination", (folder / "served").as_uri(),
            *(["--uvicorn-opts", tls] if pem else []),
        ],
        cwd=folder, stdout=log, stderr=log, start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
    )  # fmt: skip
    address = f"{'https' if pem else 'http'}://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", process, pem=pem)
        yield address, process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen) -> None:
    """The server and its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120, pem: Path | None = None) -> None:
    end, cert = time.monotonic() + seconds, str(pem) if pem else None
    while time.monotonic() < end:
        assert process.poll() is None, "the server has ended"
        try:
            if requests.get(url, timeout=5, verify=cert or True, cert=cert).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise AssertionError(f"no answer within {seconds} s")


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own on loopback, with a password; skips where there is none to start."""
    initdb = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
    initdb = initdb or (Path(found) if (found := shutil.which("initdb")) else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    password = secrets.token_hex(8)
    (folder / "password").write_text(password)
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        user = pwd.getpwnam("postgres")
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    port, data = free_port(), folder / "data"
    subprocess.run(
        [*as_user, initdb, "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", folder / "password"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    server = subprocess.Popen(
        [*as_user, initdb.with_name("postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                psycopg.connect(
                    host="127.0.0.1", port=port, user="mlflow", password=password, dbname="postgres"
                ).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.1)
        yield f"postgresql://mlflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
