"""Upload every experiment, HEAD and the workspace to MLflow; rebuild a lost store from DVC.

A run is made of what dvc.lock records as executed, or not at all. Exits with 2 if something could
not be uploaded. What is not on this machine, or was not executed, is noted and no failure.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import NoResultsError, UserError
from pipeline.paths import DVC_YAML, OWN
from pipeline.runtime import git
from pipeline.runtime.dvc import open_repo
from pipeline.runtime.files import home
from pipeline.tracking.client import Store, open_store
from pipeline.tracking.log_run import log_run
from pipeline.tracking.results import CACHED, read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def main(arguments: argparse.Namespace) -> None:
    """Log everything that DVC has. Raises UserError if something could not be logged."""
    root = home()
    store = open_store(root)
    commits = [*git.experiments(root), *filter(None, [git.head(root)])]
    logged, failed = [], []
    for entry in [*commits, None]:
        name = (entry.name or "HEAD") if entry else "workspace"
        try:
            message = log_commit(store, root, entry) if entry else log_workspace(store, root)
            logged.append(name)
        except NoResultsError as error:
            message = str(error)
        except UserError as error:
            message = f"not in MLflow: {error}"
            failed.append(name)
        print(f"log-all: {name}: {message}", flush=True)
    if failed:
        raise UserError("log-all", f"not in MLflow: {', '.join(failed)}")
    count = f"{len(logged)} of {len(commits) + 1}"
    print(f"log-all: {count} are complete in MLflow" + "; `make ui` shows them" * bool(logged))


def log_commit(store: Store, root: Path, entry: git.Experiment) -> str:
    """Log a commit from its files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        git.check_out(entry.commit, CACHED, root, folder)
        require_executed(folder)
        return log_run(store, read_results(folder), git.source_of(entry, root), entry.made)


def log_workspace(store: Store, root: Path) -> str:
    """Log what `dvc repro` has left in the workspace."""
    require_executed(root)
    return log_run(store, read_results(), git.here())


def require_executed(folder: Path) -> None:
    """Raise NoResultsError unless the files are what their dvc.lock records as executed.

    A file of DVC's cache may be absent: then the stages that write and read it must agree on its
    hash.
    """
    # In a commit's temporary folder there is no git, and DVC is to leave nothing behind. In its
    # configuration, $HOME in the name of a folder would be a variable.
    with tempfile.TemporaryDirectory() as scratch:
        core = {"no_scm": True, "site_cache_dir": scratch}
        with open_repo(folder, config={"core": core}) as repo:
            changed = _changed(repo)
    if changed:
        names = ", ".join(sorted(changed)[:5])
        raise NoResultsError(names, "not what dvc.lock records as executed; `dvc repro`")


def _changed(repo: Any) -> set[str]:
    """What differs from dvc.lock: parameters, code, stages, outputs."""
    found = repo.stage.load_all(f"{repo.root_dir}/{DVC_YAML}")
    stages = [stage for stage in found if stage.name != "log"]
    outs = [out for stage in stages for out in stage.outs]
    cached = {out.fs_path: out.hash_info for out in outs if out.use_cache}
    # Whatever is in data/own now, `download` has read it.
    deps = [dep for stage in stages for dep in stage.deps if dep.def_path != OWN.as_posix()]
    changed = {f"dvc.yaml: {stage.name}" for stage in stages if stage.cmd_changed}
    for item in [*outs, *deps]:
        status = item.workspace_status()
        is_absent = "deleted" in status.values()
        if not (is_absent and item.hash_info == cached.get(item.fs_path)):
            changed.update(pd.json_normalize(status, sep=": "))  # params.yaml: KEY
    return changed
