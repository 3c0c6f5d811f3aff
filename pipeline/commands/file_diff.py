"""How two files of results differ: first by their bytes, then by the numbers in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import load_file

from pipeline.paths import MODEL
from pipeline.runtime.files import sha256_file
from pipeline.runtime.tensor_file import read_header

IDENTICAL = "identical"


def file_diff(recorded: Path, again: Path) -> str:
    """`identical`, or how the second file differs from the first."""
    for path, words in ((recorded, "not recorded"), (again, "not written again")):
        if not path.exists():
            return f"differs: {words}"
    try:
        if sha256_file(recorded) == sha256_file(again):
            return IDENTICAL
        difference = number_diff(read_numbers(recorded), read_numbers(again))
        if recorded.suffix == MODEL.suffix and (changed := provenance_diff(recorded, again)):
            difference += f"; made with other {', '.join(changed)}"
        return difference
    except Exception as error:  # whatever the library that reads it raises
        return f"differs: cannot be compared by its numbers ({error})"


def number_diff(one: pd.Series, other: pd.Series) -> str:
    """The largest absolute difference, where it is, and how many values differ. NaN equals NaN."""
    if not one.index.equals(other.index):
        return "differs: other names or shapes"
    changed = one.compare(other)
    if changed.empty:
        return "differs: equal numbers, other bytes"
    gap = (changed["self"] - changed["other"]).abs().fillna(np.inf)
    name, _ = gap.idxmax()
    size = f"{gap.max():.2g}, in {name}"
    return f"differs by at most {size} ({len(gap)} of {len(one)} values differ)"


def read_numbers(path: Path) -> pd.Series:
    """Every number in a file of results, indexed by name and position. Text counts as NaN."""
    arrays = READERS[path.suffix](path)
    columns = {name: pd.Series(np.ravel(arrays[name])) for name in arrays}
    return pd.to_numeric(pd.concat(columns), errors="coerce").astype(float)


def provenance_diff(recorded: Path, again: Path) -> list[str]:
    """What two model files report differently about their training, for example params.z_dim."""
    headers = [read_header(path).get("provenance", {}) for path in (recorded, again)]
    table = pd.json_normalize(headers)
    return list(table.columns[table.nunique(dropna=False) > 1])


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": pd.read_csv,
    ".json": lambda path: pd.json_normalize(json.loads(path.read_bytes()), sep="/"),
    ".parquet": pd.read_parquet,
    ".png": lambda path: {"pixels": np.asarray(Image.open(path).convert("RGB"))},
    ".safetensors": load_file,
}
