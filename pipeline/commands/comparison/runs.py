"""Runs as their commits recorded them. What a run lacks becomes a note."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.params import parse_yaml
from pipeline.paths import CLASSIFIER_REPORT, DVC_LOCK, EVALUATION, METRICS, MODEL, PER_IMAGE
from pipeline.runtime.git import Experiment, git_bytes

UNREADABLE = (UserError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException)

Blobs = dict[tuple[str, Path], bytes]


@dataclass(eq=False)
class Run:
    """One run. Metrics are per image; `NAME_se` is the standard error over the test images."""

    name: str
    experiment: Experiment
    params: dict[str, Any] = field(default_factory=dict)  # as executed
    code: dict[str, str] = field(default_factory=dict)  # of train and evaluate: path -> md5
    model: Path | None = None  # in DVC's cache
    metrics: dict[str, float] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)  # {"classifier": ..., "floor": ...}
    per_image: pd.DataFrame = field(default_factory=pd.DataFrame)
    protocol: dict[str, Any] = field(default_factory=dict)  # of the per-image values
    notes: list[str] = field(default_factory=list)


def read_blobs(root: Path, wanted: Iterable[tuple[str, Path]]) -> Blobs:
    """Read the files (commit, path) that exist, with one git process for all of them."""
    keys = list(wanted)
    names = "".join(f"{commit}:{path.as_posix()}\n" for commit, path in keys)
    output = io.BytesIO(git_bytes("cat-file", "--batch", at=root, stdin=names.encode()))
    blobs = {}
    for key in keys:
        *_, size = output.readline().split()
        if size.isdigit():  # "missing" otherwise
            blobs[key] = output.read(int(size))
            output.readline()
    return blobs


def read_runs(chosen: Mapping[str, Experiment], root: Path) -> list[Run]:
    """Read every run: reports from its commit, per-image values from DVC's cache.

    The cache is read by the md5 in dvc.lock. DVC's file system of a commit takes seconds each.
    """
    from dvc.repo import Repo  # noqa: PLC0415  (`compare --help` does not need it)

    cache = Repo(str(root)).cache.local
    files = (DVC_LOCK, METRICS, EVALUATION, CLASSIFIER_REPORT)
    wanted = [(entry.commit, path) for entry in chosen.values() for path in files]
    blobs = read_blobs(root, wanted)
    runs = [Run(name, entry) for name, entry in chosen.items()]
    for run in runs:
        content = {path: blobs.get((run.experiment.commit, path), b"{}") for path in files}
        try:
            outs = _read_lock(run, content[DVC_LOCK])
            cached = {path: Path(cache.oid_to_path(md5)) for path, md5 in outs.items()}
            _read_reports(run, content)
            _read_per_image(run, cached.get(PER_IMAGE.as_posix(), Path()))
            run.model = cached.get(MODEL.as_posix())
        except UNREADABLE as error:
            run.notes.append(f"cannot be read completely ({error or type(error).__name__})")
    return runs


def _read_lock(run: Run, content: bytes) -> dict[str, str]:
    """Read what was executed, whatever params.yaml contains by now. Returns outputs: path -> md5."""
    stages = parse_yaml(content.decode(), DVC_LOCK.name).get("stages", {})
    outs: dict[str, str] = {}
    deps: dict[str, str] = {}
    for stage in map(stages.get, {"download", "train", "evaluate"} & stages.keys()):
        run.params |= stage.get("params", {}).get("params.yaml", {})
        outs |= {item["path"]: item["md5"] for item in stage.get("outs", [])}
        deps |= {item["path"]: item["md5"] for item in stage["deps"]}
    run.code = {path: md5 for path, md5 in deps.items() if path.startswith("pipeline/")}
    if deps.get(MODEL.as_posix()) != outs.get(MODEL.as_posix()):
        raise UserError(MODEL, "trained, but not evaluated since; run `dvc repro`")
    return outs


def _read_reports(run: Run, content: Mapping[Path, bytes]) -> None:
    """Read metrics: older commits have all of them in metrics.json."""
    for path in (METRICS, EVALUATION):
        run.metrics |= json.loads(content[path]).get("test", {})
    run.classifier = json.loads(content[CLASSIFIER_REPORT])


def _read_per_image(run: Run, cached: Path) -> None:
    if not cached.is_file():
        run.notes.append(f"no paired differences: {PER_IMAGE} is not in DVC's cache (`dvc fetch`)")
        return
    table = pq.read_table(cached)
    run.per_image = table.to_pandas().astype("float64").dropna(axis="columns")
    run.protocol = json.loads((table.schema.metadata or {}).get(b"protocol", b"{}"))
