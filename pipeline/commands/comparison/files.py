"""The reports of a run as numbers. What is none of the stages' raises one of READ_ERRORS."""

import csv
import io
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commands.comparison.statistics import Array

READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException)

Table = dict[str, Array]


def numbers(values: Mapping[str, object]) -> dict[str, float]:
    """The numbers among values, if they are finite."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def read_judge(path: Path) -> dict[str, Any]:
    """{"sha256": …, "floor": {metric: value of real images}}."""
    said = json.loads(path.read_text("utf-8"))
    return {"sha256": str(said["judge"]["sha256"]), "floor": numbers(said.get("floor", {}))}


def read_table(path: Path) -> Table:
    """The columns of a CSV file, those that hold nothing but numbers; all of one length."""
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
    table = {}
    for name in rows[0] if rows else []:
        with suppress(ValueError, TypeError):
            table[str(name)] = np.array([float(row[name]) for row in rows])
    return table


def read_per_image(path: Path) -> tuple[Table, dict[str, Any]]:
    """The columns of the per-image values, and what they were measured with."""
    table = pq.read_table(path)
    columns = {name: np.asarray(table[name], dtype=np.float64) for name in table.column_names}
    protocol = json.loads((table.schema.metadata or {}).get(b"protocol", b"{}"))
    return columns, dict(protocol)
