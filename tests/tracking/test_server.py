"""Whether a store is there, asked of real servers that talk TLS: with the variables that MLflow's own client reads."""

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.failing_servers import failing, hanging
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from helpers.servers import certificate

from pipeline import server
from pipeline.tracking.server import StoreError, ask

INSECURE, TRUSTED, OWN = (
    f"MLFLOW_TRACKING_{name}" for name in ("INSECURE_TLS", "SERVER_CERT_PATH", "CLIENT_CERT_PATH")
)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    """A handshake that fails is the client's to tell."""

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def https(pem: Path, asks: ssl.VerifyMode = ssl.CERT_NONE) -> Iterator[str]:
    """A server with this certificate, which may ask its clients for the same."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.load_verify_locations(pem)
    context.verify_mode = asks
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # which refuses a client in the handshake, and not after it
    with Listener(("127.0.0.1", 0), Healthy) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()


@pytest.fixture
def pem(tmp_path, monkeypatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", INSECURE, TRUSTED, OWN):
        monkeypatch.delenv(name, raising=False)
    return certificate(tmp_path / "server.pem")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize(
    ("asks", "names"),
    [
        (ssl.CERT_NONE, {INSECURE: "True"}),
        (ssl.CERT_NONE, {INSECURE: "1"}),
        (ssl.CERT_NONE, {TRUSTED: "{pem}"}),
        (ssl.CERT_NONE, {INSECURE: "false", TRUSTED: "{pem}"}),
        (ssl.CERT_REQUIRED, {TRUSTED: "{pem}", OWN: "{pem}"}),
        (ssl.CERT_REQUIRED, {INSECURE: "true", OWN: "{pem}"}),
    ],
)
def test_a_server_that_mlflow_can_use_is_there(pem, tmp_path, monkeypatch, asks, names):
    for name, value in names.items():
        monkeypatch.setenv(name, value.format(pem=pem))
    with https(pem, asks) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert ask(tmp_path)


@pytest.mark.parametrize(
    ("asks", "names", "reason"),
    [
        (ssl.CERT_NONE, {}, "certificate verify failed: .+"),
        (ssl.CERT_NONE, {INSECURE: "0"}, "certificate verify failed: .+"),
        (ssl.CERT_NONE, {TRUSTED: "{other}"}, "certificate verify failed: .+"),
        (ssl.CERT_REQUIRED, {TRUSTED: "{pem}"}, ".* alert handshake failure"),
        (ssl.CERT_REQUIRED, {TRUSTED: "{pem}", OWN: "{other}"}, ".* alert unknown ca"),
        (ssl.CERT_NONE, {TRUSTED: "{torn}"}, ".+"),
        (ssl.CERT_NONE, {TRUSTED: "{pem}", OWN: "{torn}"}, ".+"),
    ],
)
def test_tls_that_fails_is_one_line_that_names_the_variables(pem, tmp_path, monkeypatch, asks, names, reason):
    other, torn = certificate(tmp_path / "other.pem"), tmp_path / "torn.pem"
    torn.write_text("-----BEGIN CERT")
    for name, value in names.items():
        monkeypatch.setenv(name, value.format(pem=pem, other=other, torn=torn))
    with https(pem, asks) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//somebody:s3cr3t@"))
        with pytest.raises(StoreError, match=f"^TLS with the server .* fails \\({reason}\\): ") as told:
            ask(tmp_path)
    said = str(told.value)
    assert all(name in said for name in (INSECURE, TRUSTED, OWN))
    assert "\n" not in said and "s3cr3t" not in said and "127.0.0.1" not in said and str(tmp_path) not in said


def test_a_certificate_of_another_host_is_told_without_the_host(pem, tmp_path, monkeypatch):
    monkeypatch.setenv(TRUSTED, str(pem))
    with https(pem) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("127.0.0.1", "localhost"))
        with pytest.raises(StoreError, match="Hostname mismatch") as told:
            ask(tmp_path)
    assert "localhost" not in str(told.value)


def test_a_server_without_tls_and_one_that_is_silent_are_told_apart(pem, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "TIMEOUT", 0.5)
    with failing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("http:", "https:"))
        with pytest.raises(StoreError, match=r"^TLS with the server .* fails \((wrong version number|.*record.*)\)"):
            ask(tmp_path)
    with hanging() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("http:", "https:"))
        with pytest.raises(StoreError, match="does not answer within"):
            ask(tmp_path)


@pytest.mark.parametrize("name", [TRUSTED, OWN])
def test_a_file_that_is_not_there_is_told_as_such(pem, tmp_path, monkeypatch, name):
    monkeypatch.setenv(TRUSTED, str(pem))
    monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    with https(pem) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(StoreError, match=f"^a file of certificates is not there: .*{name}"):
            ask(tmp_path)


@pytest.mark.parametrize("own", [None, "", "own.pem"])
@pytest.mark.parametrize("trusted", [None, "", "ca.pem"])
@pytest.mark.parametrize("insecure", [None, "", "true", "TRUE", "1", "false", "0", "yes"])
def test_the_variables_mean_what_they_mean_to_mlflow(pem, monkeypatch, insecure, trusted, own):
    for name, value in {INSECURE: insecure, TRUSTED: trusted, OWN: own}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    try:
        theirs = get_default_host_creds("https://127.0.0.1")
    except (MlflowException, ValueError) as error:
        with pytest.raises(StoreError, match=re.escape(INSECURE)):
            server._tls()
        assert INSECURE in str(error)
    else:
        assert server._tls() == (theirs.verify, theirs.client_cert_path)
