"""Check the MLflow store against DVC's experiments: one line and one command per problem.

Nothing is changed without --fix. For problems of DVC and git see docs/troubleshooting.md.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import NoResultsError, UserError
from pipeline.params import parse_yaml
from pipeline.paths import DVC_LOCK, EVALUATION, LOGGED, MODEL
from pipeline.runtime.cores import running_experiments
from pipeline.runtime.dvc import open_repo
from pipeline.runtime.files import home, sha256_file
from pipeline.runtime.git import Experiment, blobs, experiments, git, head
from pipeline.runtime.pending_run import PendingRun, pending_runs
from pipeline.tracking.address import REBUILD, TYPED, StoreError
from pipeline.tracking.client import Store, existing_store, experiments_of
from pipeline.tracking.executed import executed_results
from pipeline.tracking.results import CACHED
from pipeline.tracking.upload import is_whole

DOCTOR = "python -m pipeline doctor"
LOG_ALL = "python -m pipeline log-all"


class Problem(NamedTuple):
    """Something that is wrong, the command that fixes it, and what --fix calls, if that can."""

    message: str
    command: str
    fix: Callable[[], object] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--fix", action="store_true", help="end runs that no process works on")
    one.add_argument("--verify", action="store_true", help="also hash all files that DVC recorded")


def main(arguments: argparse.Namespace) -> None:
    """Print every problem. Exits with 1 if one remains."""
    root, remaining = home(), 0
    files = check_files(root) if arguments.verify else ()
    for problem in chain(check_store(root), files):
        if arguments.fix and problem.fix:
            problem.fix()
            print(f"doctor: fixed: {problem.message}", flush=True)
        else:
            remaining += 1
            print(f"doctor: {problem.message}: {problem.command}", flush=True)
    print(f"doctor: {remaining or 'no'} problem{'s' * (remaining != 1)}")
    if remaining:
        sys.exit(1)


def check_store(root: Path) -> Iterator[Problem]:
    """Report missing and damaged runs, runs left RUNNING, and a store that cannot be used."""
    try:
        store = existing_store(root)
        runs = store.runs() if store else []
        for entry in experiments(root):
            if not any(has_results(run, entry, root) for run in runs):
                yield Problem(f"experiment {entry.name} has no MLflow run", LOG_ALL)
        # A clone in which nothing was executed needs no store.
        if store or pending_runs() or (root / LOGGED).exists():
            yield from check_here(root, runs)
            yield from check_ended(root, runs)
        if store:
            yield from check_runs(store, runs)
    except StoreError as error:
        server = f"start the server or unset MLFLOW_TRACKING_URI, then {LOG_ALL}"
        advice = server if os.environ.get("MLFLOW_TRACKING_URI") else REBUILD
        if "locked" in error.message:
            advice = f"close the program that uses it, then {LOG_ALL}"
        yield Problem(f"MLflow: {error.message}", when_idle(error.command or advice))


def check_here(root: Path, runs: list[Any]) -> Iterator[Problem]:
    """Report HEAD and the workspace, if their results are executed and on this machine."""
    finished = (run for run in runs if run.info.status == "FINISHED")
    complete = {run.data.tags.get("results.sha256") for run in finished}
    for name, commit in (("HEAD", head(root)), ("workspace", None)):
        try:
            if name == "HEAD" and not is_cached(commit, root):
                continue
            with executed_results(root, commit) as results:
                if results.results_sha256 not in complete:
                    yield Problem(f"{name} has no MLflow run", when_idle(LOG_ALL))
                complete.add(results.results_sha256)  # reported once
        except NoResultsError:
            pass
        except UserError as error:
            yield Problem(f"{name}: {error}", f"repair it, then {LOG_ALL}")


def check_ended(root: Path, runs: list[Any]) -> Iterator[Problem]:
    """Report trainings that have ended and whose results no run and no experiment has."""
    names = {entry.name for entry in experiments(root)}  # reported by themselves
    executions = {run.data.tags.get("execution") for run in runs}  # FAILED, for example
    models = {run.data.tags.get("model.sha256") for run in runs if run.info.status == "FINISHED"}
    if (root / MODEL).exists():
        models.add(sha256_file(root / MODEL))  # reported with HEAD or the workspace
    for record in pending_runs():
        is_known = record.experiment in names or record.execution in executions
        if is_known or record.model_sha256 in {"", *models} or not record.has_ended():
            continue
        file = shlex.quote(os.path.relpath(record.path, root))
        message = f"the training of {record.experiment or 'dvc repro'} has no MLflow run"
        yield Problem(message, f"run it again, or to give it up: rm -f {file}")


def is_cached(commit: Experiment | None, root: Path) -> bool:
    """Whether the results of a commit are in DVC's cache: nothing is downloaded."""
    (lock,) = blobs([f"{commit.commit}:./{DVC_LOCK}"], root) if commit else (b"",)
    if not lock:
        return False
    files = outputs(parse_yaml(lock.decode(), DVC_LOCK.name))
    with open_repo(root) as repo:
        cache = Path(repo.cache.local.path)
    sums = [files.get(path, "missing") for path in CACHED]
    return all((cache / md5[:2] / md5[2:]).exists() for md5 in sums)


def has_results(run: Any, entry: Experiment, root: Path) -> bool:
    """Whether the run is complete, names the experiment, and has its metrics.

    A name may be used again.
    """
    if run.info.status != "FINISHED" or entry.name not in experiments_of(run):
        return False
    with suppress(ValueError, LookupError, TypeError):  # log-all reports what is wrong with it
        (content,) = blobs([f"{entry.commit}:./{EVALUATION.as_posix()}"], root)
        metrics = json.loads(content)["test"]
        keys = [key for key in metrics if not key.endswith("_se")]  # they are not uploaded
        return all(run.data.metrics.get(f"test/{key}") == metrics[key] for key in keys)
    return True


def check_runs(store: Store, runs: list[Any]) -> Iterator[Problem]:
    """Report what is wrong with each run. The artifacts on a server are the server's business."""
    records = {record.execution: record for record in pending_runs()}
    for run in runs:
        if run.info.status == "FINISHED" and store.keeps(run) and not is_whole(store, run):
            yield Problem(f"run {run.info.run_name} has lost artifacts", LOG_ALL)
        if run.info.status == "RUNNING" and not running_experiments():
            yield from check_running(store, run, records.get(run.data.tags.get("execution", "")))


def check_running(store: Store, run: Any, record: PendingRun | None) -> Iterator[Problem]:
    """Report a run that is RUNNING, although no experiment is."""
    message = f"run {run.info.run_name} is RUNNING, but no experiment is running here"
    if record and record.has_ended():
        yield Problem(message, f"{DOCTOR} --fix", partial(store.close, run.info.run_id, "KILLED"))
    elif record:
        yield Problem(message, "if it runs nowhere, run the experiment again")
    elif not os.environ.get("MLFLOW_TRACKING_URI"):  # elsewhere it may be of another clone
        delete = f"MLFLOW_TRACKING_URI={TYPED} mlflow runs delete --run-id {run.info.run_id}"
        yield Problem(message, f"if it runs nowhere: {delete}")


def when_idle(command: str) -> str:
    """The command for files that a running experiment may use."""
    if running_experiments() or not all(record.has_ended() for record in pending_runs()):
        return f"when no experiment is running: {command}"
    return command


def check_files(root: Path) -> Iterator[Problem]:
    """Hash the files in DVC's cache again, and the outputs in the workspace.

    DVC trusts a read-only file in its cache, and a file whose time is unchanged. A file that is
    absent is no problem: DVC restores it or executes the stage.
    """
    with open_repo(root) as repo:
        yield from check_hashes(repo)


def check_hashes(repo: Any) -> Iterator[Problem]:
    """Report the files whose content has another md5 than DVC recorded."""
    root = Path(repo.root_dir)
    cache = Path(repo.cache.local.path)  # the md5 of each file is its name
    expected = {file: file.parent.name + file.stem for file in sorted(cache.glob("??/[0-9a-f]*"))}
    text = (root / DVC_LOCK).read_text(encoding="utf-8") if (root / DVC_LOCK).exists() else ""
    lock = outputs(parse_yaml(text or "stages: {}", DVC_LOCK.name))
    for file, md5 in (expected | {root / path: md5 for path, md5 in lock.items()}).items():
        content = file.read_bytes() if file.is_file() else None
        if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            continue
        name = shlex.quote(os.path.relpath(file, root))
        _, trusted = repo.state.get(str(file), repo.fs)  # None if the file is newer
        if file.is_relative_to(cache):
            restore = f"rm -f {name} && dvc repro"
            if md5 not in text:
                restore = in_commit(md5, restore, repo)
            yield Problem(f"{name} is corrupt", when_idle(restore))
        elif trusted and trusted.value == md5:  # git ignores *.orig
            yield Problem(f"{name} is corrupt", when_idle(f"mv {name} {name}.orig && dvc repro"))
        else:
            yield Problem(f"{name} is not as in dvc.lock; to record it", when_idle("dvc commit -f"))


def in_commit(md5: str, restore: str, repo: Any) -> str:
    """The command that restores a file where an experiment or another commit uses it.

    In the workspace `dvc repro` restores nothing that dvc.lock does not name, and `dvc fetch
    --all-commits` nothing of experiments. If no commit uses the file, it is not restored.
    """
    added = ("log", "--all", "--reverse", "--format=%h", f"-S{md5}", "--", DVC_LOCK.name)
    commits = git(*added, at=Path(repo.root_dir)).split()
    if not commits:
        return restore
    pull = " --pull" if repo.config["core"].get("remote") else ""
    command = f"git checkout {commits[0]} && {restore}{pull} && git checkout -f - && dvc checkout"
    return f"with all changes committed: {command}"


def outputs(lock: Mapping[str, Any]) -> dict[Path, str]:
    """The outputs that a dvc.lock names and their md5, without folders (they are in git)."""
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    return {Path(out["path"]): out["md5"] for out in outs if not out["md5"].endswith(".dir")}
