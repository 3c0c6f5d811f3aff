"""Runs as their commits recorded them. What a run lacks becomes a note."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.params import DEFAULTS, parse_yaml
from pipeline.paths import CLASSIFIER_REPORT, DVC_LOCK, EVALUATION, MODEL, PER_IMAGE
from pipeline.runtime import git
from pipeline.runtime.dvc import open_repo, outputs
from pipeline.runtime.git import Experiment

FILES = (DVC_LOCK, EVALUATION, CLASSIFIER_REPORT)
UNREADABLE = (
    UserError, OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException,
)  # fmt: skip

Blobs = dict[tuple[str, Path], bytes]


@dataclass(eq=False)
class Run:
    """One run. Metrics are per image; `NAME_se` is the standard error over the test images."""

    name: str
    experiment: Experiment
    params: dict[str, Any] = field(default_factory=dict)  # as executed
    code: dict[str, str] = field(default_factory=dict)  # of the stages: path -> md5
    model: Path = Path()  # in DVC's cache
    metrics: dict[str, float] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)  # that scored the samples
    per_image: pd.DataFrame = field(default_factory=pd.DataFrame)
    protocol: dict[str, Any] = field(default_factory=dict)  # of the per-image values
    notes: list[str] = field(default_factory=list)


def read_blobs(root: Path, commits: Iterable[str], paths: Iterable[Path]) -> Blobs:
    """Read the paths that exist in each commit, with one git process for all of them."""
    keys = list(product(commits, paths))
    names = [f"{commit}:./{path.as_posix()}" for commit, path in keys]
    found = zip(keys, git.blobs(names, root), strict=True)
    return {key: content for key, content in found if content}


def read_runs(chosen: Mapping[str, Experiment], root: Path) -> list[Run]:
    """Read every run: reports from its commit, per-image values from DVC's cache.

    The cache is read by the md5 in dvc.lock: DVC's own file system takes seconds per commit.
    """
    with open_repo(root) as repo:
        cache = repo.cache.local
    runs = [Run(name, entry) for name, entry in chosen.items()]
    blobs = read_blobs(root, [run.experiment.commit for run in runs], FILES)
    for run in runs:
        lock, *reports = (blobs.get((run.experiment.commit, path), b"{}") for path in FILES)
        try:
            outs = _read_lock(run, lock)
            run.model = Path(cache.oid_to_path(outs[MODEL]))
            evaluation, classifier = map(json.loads, reports)
            run.metrics = evaluation.get("test", {})
            run.classifier = classifier.get("classifier", {})
            _read_per_image(run, Path(cache.oid_to_path(outs[PER_IMAGE])))
        except UNREADABLE as error:
            run.notes.append(f"incomplete: {error}")
    return runs


def _read_lock(run: Run, content: bytes) -> dict[Path, str]:
    """Read what was executed, whatever params.yaml contains by now. Returns path -> md5 of outs."""
    lock = parse_yaml(content.decode(), DVC_LOCK.name)
    stages = lock.get("stages", {})
    outs = outputs(lock)
    deps: dict[str, str] = {}
    run.params = dict(DEFAULTS)
    for name in sorted({"download", "train", "evaluate"} & stages.keys()):
        run.params |= stages[name].get("params", {}).get("params.yaml", {})
        deps |= {item["path"]: item["md5"] for item in stages[name]["deps"]}
    run.code = {path: md5 for path, md5 in deps.items() if path.startswith("pipeline/")}
    model = outs.get(MODEL)
    if model is None or deps.get(MODEL.as_posix()) != model:
        raise UserError(DVC_LOCK, "no evaluation of the trained model; run `dvc repro`")
    return outs


def _read_per_image(run: Run, cached: Path) -> None:
    if not cached.is_file():
        raise UserError(PER_IMAGE, "not in DVC's cache, no paired differences; run `dvc repro`")
    table = pq.read_table(cached, page_checksum_verification=True)
    run.protocol = json.loads(table.schema.metadata[b"protocol"])
    # Without a measure, as in earlier versions, a likelihood is comparable only with itself.
    run.protocol.setdefault("measure", run.protocol.get("likelihood"))
    run.per_image = table.to_pandas().astype("float64").dropna(axis="columns")
