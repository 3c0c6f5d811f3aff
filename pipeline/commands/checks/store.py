"""MLflow's store against DVC's experiments, and against the processes that work here."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pipeline.commands.checks.problem import Problem
from pipeline.runtime.git import experiments
from pipeline.runtime.pending_run import pending_runs
from pipeline.tracking.client import Store, StoreError, existing_store, experiments_of
from pipeline.tracking.upload import is_whole

LOG_ALL = "python -m pipeline log-all"
REBUILD = f"mv mlflow.db mlflow.db.old && {LOG_ALL}"
# The command lines of DVC, of a stage, and of the process that streams a training to MLflow.
AT_WORK = re.compile(r"(^|/| )dvc |pipeline\.(stages|tracking)\.", re.MULTILINE)


def check_store(root: Path) -> Iterator[Problem]:
    """Report missing and damaged runs, runs left RUNNING, and a store that cannot be used."""
    try:
        store = existing_store(root)
        runs = store.runs() if store else []
        names = {experiment.name for experiment in experiments(root)}
        for name in sorted(names.difference(*map(experiments_of, runs))):
            yield Problem(f"experiment {name} has no MLflow run", LOG_ALL)
        if store:
            yield from check_runs(store, runs, root)
    except StoreError as error:
        server = f"start the server or unset MLFLOW_TRACKING_URI, then {LOG_ALL}"
        yield Problem(str(error), server if "MLFLOW_TRACKING_URI" in os.environ else REBUILD)


def check_runs(store: Store, runs: list[Any], root: Path) -> Iterator[Problem]:
    """Report what is wrong with each run. The artifacts on a server are the server's business."""
    folder = (root / "mlartifacts").as_uri()
    executions = {pending.execution for pending in pending_runs()}
    for run in runs:
        label = f"run {run.info.run_name}"
        is_here = run.info.artifact_uri.startswith(folder)
        if store.uri.startswith("sqlite:") and not is_here:
            yield Problem("mlflow.db is of another folder: this one was moved or copied", REBUILD)
            return
        if run.info.status == "FINISHED" and is_here and not is_whole(store, run):
            yield Problem(f"{label} has lost artifacts", LOG_ALL)
        is_ours = run.data.tags.get("execution") in executions
        if run.info.status == "RUNNING" and is_ours and not is_busy(root):
            message = f"{label} is RUNNING, but no process works on it"
            fix = partial(store.close, run.info.run_id, "KILLED")
            yield Problem(message, "python -m pipeline doctor --fix", fix)


def is_busy(root: Path) -> bool:
    """Whether DVC or a process started by it works in the repository."""
    processes = psutil.process_iter(["cwd", "cmdline"], ad_value="")
    inside = [each.info for each in processes if Path(each.info["cwd"]).is_relative_to(root)]
    return AT_WORK.search("\n".join(" ".join(info["cmdline"]) for info in inside)) is not None
