"""Whether the MLflow store has a complete run of every result, and no run that nobody works on."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.commands.checks.problem import Problem, when_idle
from pipeline.errors import NoResultsError, UserError
from pipeline.paths import DVC_LOCK, EVALUATION, LOGGED, MODEL
from pipeline.runtime.cores import running_experiments
from pipeline.runtime.dvc import not_cached
from pipeline.runtime.files import sha256_file
from pipeline.runtime.git import Experiment, blobs, experiments, head
from pipeline.runtime.pending_run import PendingRun, pending_runs
from pipeline.tracking.address import REBUILD, TYPED, StoreError
from pipeline.tracking.client import Store, existing_store, experiments_of
from pipeline.tracking.executed import executed_results
from pipeline.tracking.results import CACHED
from pipeline.tracking.upload import is_whole, uploaded

LOG_ALL = "python -m pipeline log-all"
FIX = "python -m pipeline doctor --fix"


def check_store(root: Path) -> Iterator[Problem]:
    """Report missing and damaged runs, runs left RUNNING, and a store that cannot be used."""
    try:
        yield from _check(existing_store(root), root)
    except StoreError as error:
        server = f"start the server or unset MLFLOW_TRACKING_URI, then {LOG_ALL}"
        advice = server if os.environ.get("MLFLOW_TRACKING_URI") else REBUILD
        if "locked" in error.message:
            advice = f"close the program that uses it, then {LOG_ALL}"
        yield Problem(f"MLflow: {error.message}", when_idle(error.command or advice))


def _check(store: Store | None, root: Path) -> Iterator[Problem]:
    runs = store.runs() if store else []
    for entry in experiments(root):
        if not any(_has_results(run, entry, root) for run in runs):
            yield Problem(f"experiment {entry.name} has no MLflow run", LOG_ALL)
    # A clone in which nothing was executed needs no store.
    if store or pending_runs() or (root / LOGGED).exists():
        yield from _check_here(root, runs)
        yield from _check_trainings(root, runs)
    if store:
        yield from _check_runs(store, runs)


def _check_here(root: Path, runs: list[Any]) -> Iterator[Problem]:
    """Report HEAD and the workspace, if their results are executed and on this machine."""
    complete = {run.data.tags.get("results.sha256") for run in _finished(runs)}
    for name, commit in (("HEAD", head(root)), ("workspace", None)):
        try:
            if name == "HEAD" and not _is_cached(commit, root):
                continue
            with executed_results(root, commit) as results:
                if results.results_sha256 not in complete:
                    yield Problem(f"{name} has no MLflow run", when_idle(LOG_ALL))
                complete.add(results.results_sha256)  # reported once
        except NoResultsError:
            pass
        except UserError as error:
            yield Problem(f"{name}: {error}", f"repair it, then {LOG_ALL}")


def _check_trainings(root: Path, runs: list[Any]) -> Iterator[Problem]:
    """Report trainings that have ended and whose results no run and no experiment has."""
    names = {entry.name for entry in experiments(root)}  # reported by themselves
    executions = {run.data.tags.get("execution") for run in runs}  # FAILED, for example
    models = {run.data.tags.get("model.sha256") for run in _finished(runs)}
    if (root / MODEL).exists():
        models.add(sha256_file(root / MODEL))  # reported with HEAD or the workspace
    for record in pending_runs():
        is_known = record.experiment in names or record.execution in executions
        if is_known or record.model_sha256 in {"", *models} or not record.has_ended():
            continue
        file = shlex.quote(os.path.relpath(record.path, root))
        message = f"the training of {record.experiment or 'dvc repro'} has no MLflow run"
        yield Problem(message, f"run it again, or to give it up: rm -f {file}")


def _finished(runs: list[Any]) -> list[Any]:
    return [run for run in runs if run.info.status == "FINISHED"]


def _is_cached(commit: Experiment | None, root: Path) -> bool:
    """Whether the results of a commit are in DVC's cache: nothing is downloaded."""
    (lock,) = blobs([f"{commit.commit}:./{DVC_LOCK}"], root) if commit else (b"",)
    return bool(lock) and not not_cached(CACHED, lock.decode(), root)


def _has_results(run: Any, entry: Experiment, root: Path) -> bool:
    """Whether the run is complete, names the experiment, and has its metrics.

    A name may be used again.
    """
    if run.info.status != "FINISHED" or entry.name not in experiments_of(run):
        return False
    with suppress(ValueError, LookupError, TypeError):  # log-all reports what is wrong with it
        (content,) = blobs([f"{entry.commit}:./{EVALUATION.as_posix()}"], root)
        metrics = uploaded(json.loads(content)["test"])
        return all(run.data.metrics.get(f"test/{key}") == metrics[key] for key in metrics)
    return True


def _check_runs(store: Store, runs: list[Any]) -> Iterator[Problem]:
    """Report what is wrong with each run. The artifacts on a server are the server's business."""
    records = {record.execution: record for record in pending_runs()}
    for run in runs:
        if run.info.status == "FINISHED" and store.keeps(run) and not is_whole(store, run):
            yield Problem(f"run {run.info.run_name} has lost artifacts", LOG_ALL)
        if run.info.status == "RUNNING" and not running_experiments():
            yield from _check_running(store, run, records.get(run.data.tags.get("execution", "")))


def _check_running(store: Store, run: Any, record: PendingRun | None) -> Iterator[Problem]:
    """Report a run that is RUNNING, although no experiment is."""
    message = f"run {run.info.run_name} is RUNNING, but no experiment is running here"
    if record and record.has_ended():
        yield Problem(message, FIX, partial(store.close, run.info.run_id, "KILLED"))
    elif record:
        yield Problem(message, "if it runs nowhere, run the experiment again")
    elif not os.environ.get("MLFLOW_TRACKING_URI"):  # elsewhere it may be of another clone
        delete = f"MLFLOW_TRACKING_URI={TYPED} mlflow runs delete --run-id {run.info.run_id}"
        yield Problem(message, f"if it runs nowhere: {delete}")
