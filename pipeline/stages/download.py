"""Stage `download`: the MNIST files → data/raw, from the first source that has them (see mirrors.py).

Notable: no source is trusted. A file gets its name only after its sha256 agreed with mnist.sha256, the one place where
names and sums stand; until then it is a `.part`. A source that is down, slow or serves something else is named in one
line, and the next one is asked for what is still missing.
"""

import fcntl
import hashlib
import os
import re
import secrets
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.runtime.files import sync
from pipeline.errors import InputError, run
from pipeline.data.sources import Chunks, Source, SourceError, say, size, sources
from pipeline.params import load_params

RAW = Path("data/raw")
HURRY = 5.0  # seconds after which a source that failed once is not asked for another file
MAX_SIZE = 256 * 1024**2  # bytes of one file, packed and unpacked together: the end of an endless one


def main() -> None:
    """Fetch what the sums file of the data set lists, and say where it came from."""
    params = load_params()
    sums = read_sums(Path(__file__).parents[1] / "data" / f"{params.dataset}.sha256")
    origins = fetch(sums, RAW, sources(os.environ.get("MNIST_MIRROR", "")))
    told = [f"{count} {origin}" for origin, count in origins.items()] if len(origins) > 1 else origins
    print(f"download: {RAW}: {len(sums)} files, verified ({', '.join(told)})")


def read_sums(path: Path) -> dict[str, str]:
    """File name to sha256, from a file in the format of `sha256sum -c`. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: cannot be read") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        entry = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]*)", line)
        if entry is None or entry[2] in sums:
            raise InputError(f"{path.name}: line {number}: must be `SHA256  NAME`, and each NAME once")
        sums[entry[2]] = entry[1]
    if not sums:
        raise InputError(f"{path.name}: is empty")
    return sums


def fetch(sums: dict[str, str], folder: Path, sources: Sequence[Source]) -> Counter[str]:
    """Put every file of `sums` into `folder`, and count how many came from where.

    Raises InputError; where no source had a file it has several lines, and tells what each source said.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from error
    _sweep(folder)
    missing = {name: sha256 for name, sha256 in sums.items() if not _is_right(folder / name, sha256)}
    origins = Counter({"already there": len(sums) - len(missing)})
    reports = []
    for source in sources:
        if not missing:
            break
        before = len(missing)
        if said := _take(source, missing, folder):
            reports.append(f"{source.label}: {'; '.join(said)}")
            say(reports[-1])
        origins[f"from {source.label}"] += before - len(missing)
    if missing:
        header = f"download: {folder}: no source had {', '.join(missing)}:"
        hint = "Set MNIST_MIRROR to a folder or an http(s) URL that has them, each as NAME or NAME.gz."
        raise InputError("\n".join([header, *(f"  {report}" for report in reports), hint]))
    return +origins  # the + drops the zeros


def _take(source: Source, missing: dict[str, str], folder: Path) -> list[str]:
    """Take off `missing` what the source has, and return what it said instead of the rest."""
    said, began = [], time.monotonic()
    for name, sha256 in list(missing.items()):
        # disable=None: shown where stderr is a terminal
        bar = tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None)
        try:
            with bar, closing(source.read(name, bar)) as chunks:
                _store(_unpacked(chunks, name, bar), folder / name, sha256)
            del missing[name]
        except SourceError as error:
            said.append(str(error))
            if error.gone or time.monotonic() - began > HURRY:
                break
    return said


def _unpacked(chunks: Chunks, name: str, bar: Any) -> Iterator[bytes]:
    """The file's bytes, decompressed where it begins like gzip. Raises SourceError."""
    unpack, total = None, 0
    try:
        for chunk in chunks:
            if total == 0 and chunk.startswith(b"\x1f\x8b"):
                unpack = zlib.decompressobj(wbits=31)
            bar.update(len(chunk))
            rest = chunk
            while rest:
                if unpack and unpack.eof:  # gzip streams may follow one another
                    unpack = zlib.decompressobj(wbits=31)
                data = unpack.decompress(rest) if unpack else rest
                rest = unpack.unused_data if unpack else b""
                total += len(chunk) + len(data)
                if total > MAX_SIZE:
                    raise SourceError(f"{name}: is not the file (over {size(MAX_SIZE)})")
                yield data
    except zlib.error as error:
        raise SourceError(f"{name}: is not the file (broken gzip)") from error
    if unpack and not unpack.eof:
        raise SourceError(f"{name}: cut short (its gzip stream has no end)")


def _store(chunks: Iterator[bytes], target: Path, sha256: str) -> None:
    """Write a `.part`, and give it its name once its sum is right. Raises SourceError when it is not."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    digest, head = hashlib.sha256(), b""
    try:
        with part.open("xb") as file:  # not by tempfile, which would make it 0600
            with suppress(OSError):  # for _sweep; some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for chunk in chunks:
                head = head or chunk.lstrip(b"\xef\xbb\xbf\t\r\n ")
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                page = head.startswith(b"<")
                what = "served a web page, not the file" if page else "is not the file (sha256 differs)"
                raise SourceError(f"{target.name}: {what}", gone=page)
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)
        sync(target.parent)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left: a `.part` that no living process holds locked."""
    for part in folder.glob(".*.part"):
        with suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _is_right(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


if __name__ == "__main__":
    run(main)
