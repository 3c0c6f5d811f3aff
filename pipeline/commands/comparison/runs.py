"""One experiment as its commit has it: whatever is there is read, and what is missing becomes a note.

Everything comes from git but the per-image values and the model, which are in DVC's cache.
"""

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.commands.comparison.files import READ_ERRORS, Table, numbers, read_judge, read_per_image, read_table
from pipeline.commands.comparison.tracked import Entry, Tracker
from pipeline.errors import InputError
from pipeline.tracking.results import (
    BOUND,
    CLASSES,
    FIGURES,
    GENERATED,
    HISTORY,
    JUDGED,
    KL_PER_DIMENSION,
    METRICS,
    MODEL,
    PER_IMAGE,
    RECONSTRUCTED,
)
from pipeline.params import read_values
from pipeline.runtime.git import Experiment, experiments, fetch, unpack

TABLES = {"history": HISTORY, "bound": BOUND, "kl_per_dimension": KL_PER_DIMENSION, "classes": CLASSES}
PICTURES = {"generated": GENERATED, "reconstructed": RECONSTRUCTED} | {
    name: FIGURES / f"{name}.png" for name in ("traversals", "interpolations", "posterior_means", "manifold")
}
PNG = b"\x89PNG\r\n\x1a\n"

T = TypeVar("T")


@dataclass(eq=False)
class Run:
    """One experiment. Metrics are per image, `NAME_se` their standard error over the test images."""

    name: str
    commit: str
    command: str = ""  # brings its files back
    params: Mapping[str, object] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)  # what `train` and `evaluate` ran: path → md5
    metrics: Mapping[str, float] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)  # of FD and its like, with the floor
    per_image: Table = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)  # what the per-image values were measured with
    tables: dict[str, Table] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    tracked: Entry | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> object:
        """What it was trained with."""
        return self.params.get("seed")

    @property
    def has_results(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self.metrics or self.tables)


def gather(name: str, entry: Experiment, root: Path, tracker: Tracker) -> Run:
    """Read what the commit of an experiment has."""
    run = Run(name, entry.commit, brings_back(entry, root))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(entry.commit, root, folder)
        lock = _attempt(run, folder / "dvc.lock", lambda path: read_values(path.read_text("utf-8"), path.name)) or {}
        _read_inputs(run, folder, lock)
        if _trained_since(lock):
            run.notes.append("has been trained again and not evaluated since; `dvc repro` does it")
            return run
        _read_reports(run, folder)
        if not run.has_results:
            run.notes.append("has no results yet; `dvc repro` or `dvc exp run` makes them")
            return run
        for path in (PER_IMAGE, MODEL):
            if path.as_posix() in _outputs(lock):
                try:
                    fetch(entry.commit, path, root, folder)
                except InputError as error:
                    run.notes.append(str(error))
        if (values := _attempt(run, folder / PER_IMAGE, read_per_image)) is not None:
            columns, run.protocol = values
            run.per_image = {name: column for name, column in columns.items() if np.isfinite(column).all()}
            run.notes += [
                f"{PER_IMAGE.name}: {name} is left out, not all of it is finite"
                for name in columns.keys() - run.per_image
            ]
        if not run.per_image:
            run.notes.append("has no per-image values: no paired differences")
        if not any(name.endswith("_se") for name in run.metrics):
            run.notes.append("was evaluated by an older version of the project: fewer metrics, and no error bars")
        run.tracked = tracker.find(folder, entry.name)
    return run


def brings_back(entry: Experiment, root: Path) -> str:
    """The command that brings back the files of a commit, as it has them; "" for what is in the workspace alone."""
    if entry.name:
        # Of two with one name DVC takes the one that is on HEAD.
        alone = [other.name for other in experiments(root)].count(entry.name) == 1
        return f"dvc exp apply {shlex.quote(entry.name) if alone else entry.commit[:7]}"
    return f"git checkout {entry.commit[:10]} && dvc checkout" if entry.commit == entry.baseline else ""


def _read_inputs(run: Run, folder: Path, lock: Mapping[str, Any]) -> None:
    """Parameters and code. What dvc.lock says was executed counts, whatever params.yaml says by now."""
    run.params = _attempt(run, folder / "params.yaml", lambda path: read_values(path.read_text("utf-8"))) or {}
    with suppress(*READ_ERRORS):
        stages = [lock["stages"][name] for name in ("train", "evaluate")]
        run.code = {
            dep["path"]: dep["md5"] for stage in stages for dep in stage["deps"] if dep["path"].startswith("pipeline/")
        }
        executed = {key: value for stage in stages for key, value in stage["params"]["params.yaml"].items()}
        changed = [f"{key}: {executed[key]}" for key, value in run.params.items() if executed.get(key, value) != value]
        if changed:
            run.notes.append(f"its params.yaml was changed afterwards; what was executed has {', '.join(changed)}")
        run.params = {key: executed[key] for key in (*run.params, *executed) if key in executed}
    if not run.code:
        run.notes.append("has no dvc.lock that says which code it ran")


def _trained_since(lock: Mapping[str, Any]) -> bool:
    """Whether `evaluate` has seen another model than the one that `train` has left."""
    with suppress(*READ_ERRORS):
        made, seen = (
            {item["path"]: item["md5"] for item in lock["stages"][stage][part]}.get(MODEL.as_posix())
            for stage, part in (("train", "outs"), ("evaluate", "deps"))
        )
        return seen is not None and made != seen
    return False


def _outputs(lock: Mapping[str, Any]) -> set[str]:
    with suppress(*READ_ERRORS):
        return {out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    return set()


def _read_reports(run: Run, folder: Path) -> None:
    """What git has: metrics, tables, pictures."""
    said = _attempt(run, folder / METRICS, lambda path: numbers(json.loads(path.read_text("utf-8"))["test"]))
    run.metrics = said or {}
    run.judge = _attempt(run, folder / JUDGED, read_judge) or {}
    for name, path in TABLES.items():
        if table := _attempt(run, folder / path, read_table):
            run.tables[name] = table
    for name, path in PICTURES.items():
        picture = _attempt(run, folder / path, Path.read_bytes)
        if picture and picture.startswith(PNG) and len(picture) > 24:
            run.pictures[name] = picture


def _attempt(run: Run, path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file; None where there is none, and a note where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except InputError as error:
        run.notes.append(str(error))
    except READ_ERRORS:
        run.notes.append(f"{path.name} is not what the stages write, and is left out")
    return None
