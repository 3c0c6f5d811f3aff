"""Upload every experiment, HEAD and the workspace to MLflow; rebuild a lost store from DVC.

Exits with 0 if MLflow has one complete run for each, else with 2 and the list of the others.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.errors import UserError
from pipeline.paths import DVC_LOCK
from pipeline.runtime.files import home
from pipeline.runtime.git import Experiment, check_out, experiments, head, here, source_of, text_at
from pipeline.tracking.client import Store, open_store
from pipeline.tracking.log_run import log_run
from pipeline.tracking.results import CACHED, read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def main(arguments: argparse.Namespace) -> None:
    """Log everything that DVC has. Raises UserError if something could not be logged."""
    root = home()
    store = open_store(root)
    commits = [*experiments(root), *filter(None, [head(root)])]
    executed = [entry for entry in commits if text_at(entry.commit, str(DVC_LOCK), root)]
    failed = []
    for entry in [*executed, None]:
        name = (entry.name or "HEAD") if entry else "workspace"
        try:
            message = log_commit(store, root, entry) if entry else log_workspace(store, root)
        except UserError as error:
            message = f"not in MLflow: {error}"
            failed.append(name)
        print(f"log-all: {name}: {message}", flush=True)
    if failed:
        raise UserError("log-all", f"not in MLflow: {', '.join(failed)}")
    print("log-all: everything is in MLflow; `make ui` shows it")


def log_commit(store: Store, root: Path, entry: Experiment) -> str:
    """Log a commit from its files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        check_out(entry.commit, CACHED, root, folder)
        return log_run(store, read_results(folder), source_of(entry, root), entry.made)


def log_workspace(store: Store, root: Path) -> str:
    """Log what `dvc repro` has left in the workspace, if it is up to date."""
    stages = ["train", "train_classifier", "evaluate"]
    command = [sys.executable, "-m", "dvc", "status", "--quiet", *stages]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise UserError("dvc", " ".join(done.stderr.split()) or "dvc status failed")
    if done.returncode == 1:
        return "not up to date (`dvc status`), skipped"
    return log_run(store, read_results(), here())
