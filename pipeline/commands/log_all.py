"""Upload every experiment, HEAD and the workspace to MLflow; rebuild a lost store from DVC.

A run is made of what dvc.lock records as executed, or not at all. Exits with 2 if something could
not be uploaded. What is not on this machine, or was not executed, is noted and no failure.
"""

import argparse

from pipeline.errors import NoResultsError, UserError
from pipeline.runtime import git
from pipeline.runtime.files import home
from pipeline.tracking.client import open_store
from pipeline.tracking.executed import executed_results
from pipeline.tracking.log_run import log_run


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
            with executed_results(root, entry) as results:
                source = git.source_of(entry, root) if entry else git.here()
                message = log_run(store, results, source, entry.made if entry else None)
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
