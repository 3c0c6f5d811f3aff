"""Pending runs: trainings that were executed here and do not have a complete MLflow run yet.

`train` starts a process that streams its metrics to MLflow (pipeline.tracking.follower) and never
waits for it. The follower reads the files that the training writes. It ends when its stdin is
closed, which a kill of the training does as well. Nothing here imports MLflow.
"""

import json
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import UserError
from pipeline.paths import MODEL
from pipeline.runtime.files import (
    checkpoint_path,
    home,
    is_locked,
    sha256_file,
    try_lock,
    write_output,
)
from pipeline.runtime.git import here

PATIENCE = 2.0  # seconds that the follower has to finish after the training has ended
PATIENCE_IF_FAILED = 15.0  # no `log` will follow; importing MLflow takes seconds


@dataclass
class PendingRun:
    """States that an execution was computed here, not restored, and still needs its MLflow run.

    The MLflow run, once begun, has `execution` as a tag.
    """

    experiment: str  # the name of the DVC experiment, "" for `dvc repro`
    fingerprint: str
    provenance: dict[str, Any]
    execution: str  # 32 hexadecimal digits
    source: dict[str, Any] | None = None  # of git when the training began; None if git failed
    model_sha256: str = ""  # "" until the model is written
    host: str = ""  # that began it
    process: int = 0  # see dvc_process

    def has_ended(self) -> bool:
        """Whether the experiment has certainly ended, which only its own host can know.

        A lock does not tell: another host may not see it, and between two stages there is none.
        """
        if self.host != _host() or is_locked(self.lock):
            return False
        return not psutil.pid_exists(self.process)

    @property
    def path(self) -> Path:
        """The file of this record."""
        return _folder() / f"{self.execution}.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that is writing the MLflow run: the follower, or `log`."""
        return self.path.with_suffix(".lock")

    def save(self) -> None:
        """Write the record; a reader never sees half of it."""
        write_output(self.path, json.dumps(asdict(self)).encode())

    def finish(self, model_sha256: str) -> None:
        """Record that the training has written this model."""
        self.model_sha256 = model_sha256
        self.save()

    def remove(self) -> None:
        """Remove the record: the MLflow run is complete."""
        self.path.unlink(missing_ok=True)


def load_pending(path: Path) -> PendingRun:
    """The record in a file. Raises OSError, ValueError or TypeError if it cannot be read."""
    return PendingRun(**json.loads(path.read_text(encoding="utf-8")))


def pending_runs() -> list[PendingRun]:
    """All records that can be read, the newest first."""
    records = []
    for path in _folder().glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            records.append((path.stat().st_mtime_ns, load_pending(path)))
    return [record for _, record in sorted(records, key=itemgetter(0), reverse=True)]


def find_pending(**values: str) -> PendingRun | None:
    """The newest record with these values, for example of `experiment` and `model_sha256`."""
    for record in pending_runs():
        if all(getattr(record, name) == value for name, value in values.items()):
            return record
    return None


def find_ended(model_sha256: str) -> PendingRun | None:
    """The newest record of this model whose experiment has ended without a complete MLflow run.

    DVC gives an experiment a new name each time, unless the user names it. The training is then
    restored from the run-cache, and the record has the name of the experiment that failed.
    """
    for record in pending_runs():
        if record.model_sha256 == model_sha256 and record.has_ended():
            return record
    return None


@contextmanager
def follow_training(fingerprint: str, provenance: Mapping[str, Any]) -> Iterator[PendingRun]:
    """Have the training inside this block followed; at the end it waits PATIENCE seconds at most.

    Yields the record, of a new execution or of an interrupted one with the same fingerprint.
    """
    experiment = os.environ.get("DVC_EXP_NAME", "")
    record = PendingRun(experiment, fingerprint, dict(provenance), uuid.uuid4().hex)
    record.host, record.process = _host(), dvc_process()
    with suppress(UserError, OSError):  # the follower and `log` ask git again, and report it
        record.source = asdict(here())
    interrupted = find_pending(fingerprint=fingerprint, experiment=experiment)
    # DVC gives an experiment a new name each time, unless the user names it.
    interrupted = interrupted or find_pending(fingerprint=fingerprint, model_sha256="")
    # Without the lock of its checkpoint, another process runs the same training now.
    if interrupted and try_lock(checkpoint_path(fingerprint).with_suffix(".lock")):
        record.execution = interrupted.execution
    record.save()
    with _followed(record):
        yield record


@contextmanager
def mark_failure() -> Iterator[None]:
    """If the block fails, the MLflow run of the model that was trained here is FAILED.

    If it is interrupted (Ctrl-C, SIGTERM), the run is KILLED.
    """
    try:
        yield
    except BaseException:
        model = sha256_file(MODEL) if MODEL.exists() else "none"
        experiment = os.environ.get("DVC_EXP_NAME", "")
        record = find_pending(experiment=experiment, model_sha256=model) or find_ended(model)
        with _followed(record) if record else nullcontext():
            raise


@contextmanager
def _followed(record: PendingRun) -> Iterator[None]:
    follower = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.follower", str(record.path)],
        stdin=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for the training; the follower learns of its end through stdin
    )
    end, patience = b"FAILED", PATIENCE_IF_FAILED
    try:
        yield
        end, patience = b"FINISHED", PATIENCE
    except (KeyboardInterrupt, SystemExit):
        end = b"KILLED"
        if not record.model_sha256:  # the follower has begun the run, or there is none
            patience = PATIENCE
        raise
    finally:
        with suppress(OSError, subprocess.TimeoutExpired):  # it has ended already, or is still busy
            follower.communicate(end, timeout=patience)
        follower.kill()
        follower.wait()


def dvc_process() -> int:
    """The process that runs all stages of this execution: DVC, or this one if DVC does not."""
    return os.getppid() if "DVC_STAGE" in os.environ else os.getpid()


def _host() -> str:
    """This host or container: a process number means something only in its namespace."""
    namespace = Path("/proc/self/ns/pid")
    space = namespace.stat().st_ino if namespace.exists() else 0
    return f"{platform.node()} {space}"


def _folder() -> Path:
    return home() / ".dvc" / "tmp" / "runs"
