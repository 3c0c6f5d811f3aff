"""How two files of results differ, in words: by their bytes first, then by what they hold."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.errors import InputError
from pipeline.tracking.results import METRICS, MODEL, flat, read_history, read_provenance

IDENTICAL = "identical"


def difference(one: Path, other: Path) -> str:
    """`identical`, or in what way `other` differs from `one`. Errors in either file are told, not raised."""
    if not one.exists() or not other.exists():
        return f"is missing {'in the run' if other.exists() else 'in the reproduction'}"
    if sha256(one) == sha256(other):
        return IDENTICAL
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, InputError):
        if compare := COMPARE.get(one.suffix):
            return compare(one, other)
    return f"differs: sha256 {sha256(one)[:12]}… became {sha256(other)[:12]}…"


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metric(folder: Path, name: str) -> float:
    """A metric from the reports in `folder`; NaN where it is not there."""
    try:
        return flat(json.loads((folder / METRICS).read_text(encoding="utf-8")))[name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return math.nan


Numbers = Mapping[str, np.ndarray]


def _of_numbers(one: Numbers, other: Numbers, what: str) -> str:
    """The largest difference between arrays of the same names and shapes, and where it is."""
    if {key: value.shape for key, value in one.items()} != {key: value.shape for key, value in other.items()}:
        return f"differs: other {what}"
    gaps = {key: float(np.nanmax(np.abs(value - other[key]), initial=0.0)) for key, value in one.items()}
    changed = [key for key, gap in gaps.items() if gap > 0]
    if not changed:
        return f"differs: the {what} are equal, not their bytes"
    worst = max(changed, key=lambda key: gaps[key])
    return f"differs by {gaps[worst]:.2g} at most, in {worst} ({len(changed)} of {len(gaps)} {what} differ)"


def _weights(path: Path) -> Numbers:
    return {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}


def _headers(one: Path, other: Path) -> str:
    """What decided the two models and is not the same, file by file and key by key."""
    found = [_decisive(read_provenance(path)) for path in (one, other)]
    keys = sorted(key for key in found[0].keys() | found[1].keys() if found[0].get(key) != found[1].get(key))
    return f"; made with other {', '.join(keys)}" if keys else ""


def _decisive(said: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in said.items():
        if key in ("fingerprint", "splits"):  # functions of the rest
            continue
        found |= value if isinstance(value, dict) else {key: value}
    return found


def _of_models(one: Path, other: Path) -> str:
    return _of_numbers(_weights(one), _weights(other), "weights") + _headers(one, other)


def _of_tables(one: Path, other: Path) -> str:
    return _of_numbers(_table(one), _table(other), "values")


def _table(path: Path) -> Numbers:
    """Each value by its column and its row, which the first column names: epoch, k, digit or rank."""
    return {
        f"{name} at {next(iter(row))} {next(iter(row.values())):g}": np.array(value)
        for row in read_history(path)
        for name, value in row.items()
    }


def _of_metrics(one: Path, other: Path) -> str:
    return _of_numbers(_metrics(one), _metrics(other), "values")


def _metrics(path: Path) -> Numbers:
    found = flat(json.loads(path.read_text(encoding="utf-8")))
    return {name: np.array(value) for name, value in found.items() if name != "judge/sha256"}


def _of_columns(one: Path, other: Path) -> str:
    return _of_numbers(_columns(one), _columns(other), "columns")


def _columns(path: Path) -> Numbers:
    table = pyarrow.parquet.read_table(path)
    return {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}


def _of_pictures(one: Path, other: Path) -> str:
    with Image.open(one) as first, Image.open(other) as second:
        if first.size != second.size:
            return f"differs: {first.size} pixels became {second.size}"
        pixels = np.abs(np.asarray(first.convert("RGB"), np.int16) - np.asarray(second.convert("RGB"), np.int16))
    return f"differs in {(pixels.max(axis=-1) > 0).mean():.1%} of its pixels, by {pixels.max()} of 255 at most"


def results(folder: Path) -> list[Path]:
    """The files of results in `folder`, relative to it."""
    found: Iterable[Path] = [folder / MODEL, *(folder / METRICS.parent).rglob("*")]
    found = [path for path in found if path.is_file() and not path.name.startswith(".")]
    return sorted(path.relative_to(folder) for path in found)


COMPARE: dict[str, Callable[[Path, Path], str]] = {
    ".safetensors": _of_models, ".csv": _of_tables, ".json": _of_metrics, ".parquet": _of_columns,
    ".png": _of_pictures,
}  # fmt: skip
