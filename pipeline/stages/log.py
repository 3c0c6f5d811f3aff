"""Stage `log`: mirror what the other stages wrote to one MLflow run. `--all` does it for everything DVC has.

Files are the truth: a run is found by what it came from and what came out, and made complete from the files. Doing
it again changes nothing; a store that is lost is built anew.
"""

import sys

from pipeline.errors import InputError, run, writing
from pipeline.params import load_params
from pipeline.runtime.files import home
from pipeline.runtime.cores import join

if __name__ == "__main__":
    # What is wrong in params.yaml is said before the seconds that MLflow takes to import.
    run(lambda: sys.argv[1:] or load_params())
    join(home())  # these take a core meanwhile

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from pipeline.tracking.run_note import cpu, describe, same_results, short_name, tags_of
from pipeline.tracking.results import CACHED, Execution, read_execution
from pipeline.runtime.pending_run import Claim, checkpoint_path
from pipeline.tracking.upload import fill, is_whole
from pipeline.runtime.git import (
    Experiment,
    Source,
    artifact,
    check_out,
    experiments,
    head,
    here,
    source_of,
    text_at,
)
from pipeline.tracking.server import StoreError
from pipeline.tracking.client import Store, open_store

LOGGED = Path("data/logged")
WAIT = 10.0  # seconds for the mirror of a training that has just ended


def main() -> None:
    """Run the stage, or log everything."""
    match sys.argv[1:]:
        case []:
            stage()
        case ["--all"]:
            log_all(home())
        case _:
            raise InputError("usage: python -m pipeline.stages.log [--all]")


def stage() -> None:
    """Mirror the working directory. A store that is away fails nothing: the results are in the files."""
    execution = read_execution()
    try:
        print(f"log: {record(open_store(home()), home(), execution, here())}")
        print("log: `make ui` shows it; `dvc exp run -S z_dim=2` makes another to compare with it")
    except StoreError as error:
        # To fail here would make DVC throw a finished experiment away.
        print(f"log: NOT in MLflow: {error}", file=sys.stderr)
        print("log: nothing is lost; when the store is back: python -m pipeline.stages.log --all", file=sys.stderr)
    # Always the same bytes: a run's id would be another experiment's as soon as that one was restored or applied.
    with writing(LOGGED):
        LOGGED.write_text("Here `log` has run.\n", encoding="utf-8")
    forget(home(), execution)


def record(store: Store, root: Path, execution: Execution, source: Source, made: int | None = None) -> str:
    """Make the store hold one complete run of `execution`; what was done, in words.

    An execution that was computed here has a claim, and a run of its own. Without one its results came out of a
    cache or a commit, and belong to the run that has them already. `made`: when they were, if that was not now (ms).
    """
    path = Claim.path(root, source.experiment, execution.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path, execution.fingerprint):
        claim = Claim.load(path)
        found = store.begun(claim.execution) if claim else store.find(execution.fingerprint, execution.results)
        if found and found.data.tags.get("results.sha256") == execution.results and is_whole(store, found):
            path.unlink(missing_ok=True)
            if source.experiment and store.link(found, source.experiment, same_results(source.experiment)):
                return f"{source.experiment} has the results of MLflow run {found.info.run_name}, and is linked to it"
            return f"MLflow run {found.info.run_name} has it already"
        if claim and claim.source:
            source = Source(**claim.source)
        tags = tags_of(execution.provenance, source) | {
            "results.sha256": execution.results,
            "model.sha256": execution.model_sha256,
            "judge.sha256": execution.judge_sha256,
            "mlflow.note.content": describe(execution, source, defaults(source, root)),
        }
        if claim:  # it was computed here
            tags |= {"execution": claim.execution, "cpu": cpu()}
        begun = found or store.create(source.experiment or short_name(execution.params), tags, made)
        fill(store, begun, execution, tags, artifact(source))
        # Of a run that lost its artifacts only those are new.
        store.close(begun.info.run_id, "FINISHED", begun.info.end_time if begun.info.status == "FINISHED" else made)
        path.unlink(missing_ok=True)
    return f"MLflow run {begun.info.run_name} ({begun.info.run_id})"


@contextmanager
def alone(path: Path, fingerprint: str) -> Iterator[None]:
    """Hold what keeps others from this execution: who looks for its run and finds none makes one."""
    try:
        # A mirror that lives on after that belongs to another training.
        with FileLock(path.with_name(f"{fingerprint[:16]}.lock")), FileLock(path.with_suffix(".lock"), timeout=WAIT):
            yield
    except Timeout as error:
        raise StoreError("it is being trained once more just now; try again when that is over") from error


def defaults(source: Source, root: Path) -> dict[str, object] | None:
    """The parameters of the commit that an execution is a change to; None where there are none of this version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text_at(source.baseline, "params.yaml", root) if source.baseline else "", encoding="utf-8")
        try:
            return load_params(path).model_dump()
        except InputError:
            return None


def log_all(root: Path) -> None:
    """Every DVC experiment, HEAD and the workspace: afterwards the store holds one complete run for each."""
    try:
        store = open_store(root)
    except StoreError as error:
        raise InputError(f"log: NOT in MLflow: {error}") from error
    missing = 0
    committed = [*experiments(root), *([last] if (last := head(root)) else [])]
    with tqdm([*committed, None], unit="experiment", disable=None) as progress:
        for entry in progress:
            name = (entry.name or "HEAD") if entry else "workspace"
            try:
                said = from_commit(store, root, entry) if entry else from_workspace(store, root)
            except (InputError, StoreError) as error:
                said, missing = f"NOT in MLflow: {error}", missing + 1
            if said:
                progress.write(f"log: {name}: {said}")
    if missing:
        raise InputError(f"log: {missing} of {len(committed) + 1} are not in MLflow")
    print("log: everything is in MLflow; `make ui` shows it")


def from_commit(store: Store, root: Path, entry: Experiment) -> str:
    """Log a commit from its files; "" if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        if not text_at(entry.commit, "dvc.lock", root):
            return ""  # nothing has been executed there
        check_out(entry.commit, CACHED, root, Path(folder))
        execution = read_execution(Path(folder))
        return record(store, root, execution, source_of(entry, root), entry.made)


def from_workspace(store: Store, root: Path) -> str:
    """Log what `dvc repro` left in the workspace and nobody has committed; "" if it is not all there."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "-q", "train", "judge", "evaluate"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        return ""
    execution = read_execution()
    said = record(store, root, execution, here())
    forget(root, execution)
    return said


def forget(root: Path, execution: Execution) -> None:
    """Remove the checkpoint of a training that DVC has recorded: executed again, it begins anew."""
    checkpoint_path(root, execution.fingerprint).unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
