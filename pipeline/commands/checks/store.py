"""What is in MLflow's store, against what is in DVC and on the disk."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from pipeline.commands.checks.finding import Finding
from pipeline.commands.checks.processes import at_work
from pipeline.runtime.pending_run import Claim
from pipeline.runtime.git import experiments
from pipeline.tracking.server import StoreError, typed

if TYPE_CHECKING:
    from pipeline.tracking.client import Store

Run = Any  # MLflow's: only its doors import it

LOG_ALL = "python -m pipeline.stages.log --all"
REBUILD = f"mv mlflow.db mlflow.db.aside && {LOG_ALL}"  # files are the truth
FIX = "python -m pipeline.commands.doctor --fix"


def check_mlruns(root: Path) -> Iterator[Finding]:
    """Runs of an older MLflow in `mlruns/`: it then takes that folder for its store wherever none is named."""
    if not any(path.parent.name.isdigit() for path in root.glob("mlruns/*/meta.yaml")):
        return
    aside = next(name for number in count() if not (root / (name := f"mlruns.aside{number or ''}")).exists())
    yield Finding(
        "mlruns/ makes MLflow forget mlflow.db where no store is named",
        f"mv mlruns {aside}",
        lambda: bool((root / "mlruns").rename(root / aside)),
    )


def check_store(root: Path) -> Iterator[Finding]:
    """What is in the store, against what is in DVC and on the disk."""
    from pipeline.tracking.client import existing_store  # noqa: PLC0415  (MLflow takes seconds to import)

    try:
        store = existing_store(root)
        runs = store.runs() if store else []
        if store and is_moved(store, root):
            yield Finding(
                "mlflow.db is another folder's, where its artifacts are: this one was moved or copied", REBUILD
            )
        elif store:
            yield from check_artifacts(store, runs)
        if store:
            yield from check_running(store, runs, root)
        yield from check_experiments(store, runs, root)
    except StoreError as error:
        if error.command:
            yield Finding(error.why, error.command)
            return
        if os.environ.get("MLFLOW_TRACKING_URI"):
            command = "start it or unset MLFLOW_TRACKING_URI; what it misses then: " + LOG_ALL
        else:
            command = f"{REBUILD} (where it stays so)"
        yield Finding(f"MLflow's store cannot be used ({error})", command)


def is_embedded(store: "Store", root: Path) -> bool:
    """Whether the store is a file of this repository, and every run in it therefore this repository's."""
    return store.uri.startswith("sqlite:///") and Path(store.uri.removeprefix("sqlite:///")).is_relative_to(root)


def folder_of(address: str) -> Path | None:
    """The folder of this machine that an address names; None where it names anything else."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def is_moved(store: "Store", root: Path) -> bool:
    """Whether new artifacts would go where the repository was when its store was made."""
    folder = folder_of(store.artifacts())
    if not is_embedded(store, root) or folder is None or folder.is_relative_to(root):
        return False
    return folder.name == "mlartifacts" or not folder.exists()


def check_artifacts(store: "Store", runs: list[Run]) -> Iterator[Finding]:
    """Runs that `log` has completed and that are no longer whole; a server's artifacts are the server's business."""
    from pipeline.tracking.upload import is_whole  # noqa: PLC0415

    for entry in runs:
        completed = entry.info.status == "FINISHED" and "results.sha256" in entry.data.tags
        on_disk = folder_of(entry.info.artifact_uri) and not store.uri.startswith("http")
        if completed and on_disk and not is_whole(store, entry):
            delete = delete_command(entry)
            yield Finding(
                f"run {entry.info.run_name} has lost artifacts", f"{LOG_ALL} (or, if DVC lacks them: {delete})"
            )


def delete_command(entry: Run) -> str:
    """What removes a run that nobody wants; MLflow can restore it."""
    return typed(f"runs delete --run-id {entry.info.run_id}")


def check_running(store: "Store", runs: list[Run], root: Path) -> Iterator[Finding]:
    """Runs that are RUNNING and that nobody trains. Between `train` and `log` only DVC knows that it goes on."""
    for entry in runs:
        if entry.info.status != "RUNNING" or not is_ours(store, entry, root) or at_work(root):
            continue
        if not any(map(is_held, locks_of(entry, root))):
            what = f"run {entry.info.run_name} is RUNNING, but nobody trains it"
            yield Finding(what, FIX, partial(close, store, entry, root))


def is_ours(store: "Store", entry: Run, root: Path) -> bool:
    """Whether a run was begun from here: of another store's, those that a claim here names."""
    return bool(claims_of(entry, root)) or ("fingerprint" in entry.data.tags and is_embedded(store, root))


def claims_of(entry: Run, root: Path) -> list[Path]:
    """The claims on a run: of the training that began it, unless `log` has settled it."""
    execution = entry.data.tags.get("execution")
    claims = [(path, Claim.load(path)) for path in sorted((root / ".dvc/tmp/runs").glob("*.json"))]
    return [path for path, claim in claims if claim and claim.execution == execution]


def locks_of(entry: Run, root: Path) -> list[Path]:
    """The locks that are held by whoever writes a run: `log`, or the mirror of a training as long as it lives."""
    log = root / ".dvc/tmp/runs" / f"{entry.data.tags.get('fingerprint', '')[:16]}.lock"
    return [log, *(path.with_suffix(".lock") for path in claims_of(entry, root))]


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock; without making its file."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def close(store: "Store", entry: Run, root: Path) -> bool:
    """End a run as KILLED, while nobody can begin to write it. Raises Timeout, an OSError, where somebody does."""
    with ExitStack() as held:
        for lock in locks_of(entry, root):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock, timeout=0))
        still = [again.info.run_id for again in store.runs() if again.info.status == "RUNNING"]
        if entry.info.run_id not in still or at_work(root):
            return False
        store.close(entry.info.run_id, "KILLED")
    return True


def check_experiments(store: "Store | None", runs: list[Run], root: Path) -> Iterator[Finding]:
    """DVC's experiments without a run, and runs whose experiment DVC no longer has."""
    from pipeline.tracking.client import experiments_of  # noqa: PLC0415

    kept = {experiment.name for experiment in experiments(root)}
    for name in sorted(kept.difference(*map(experiments_of, runs))):
        yield Finding(f"experiment {name} has no run", LOG_ALL)
    for entry in runs:
        # One that `dvc repro` has made is not that experiment's alone.
        made = entry.info.status == "FINISHED" and entry.data.tags.get("mlflow.source.name") == "dvc exp run"
        if store and is_embedded(store, root) and made and kept.isdisjoint(experiments_of(entry)):
            yield Finding(
                f"run {entry.info.run_name}: DVC no longer has the experiment, its files are in the run; to remove it",
                delete_command(entry),
                remark=True,
            )
