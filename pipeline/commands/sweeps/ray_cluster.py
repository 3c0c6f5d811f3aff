"""Workers on the nodes of a Ray cluster, each in a clone of its own."""

import importlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from pipeline.commands.sweeps.experiment import Clone
from pipeline.commands.sweeps.worker import POLL_SECONDS
from pipeline.errors import UserError
from pipeline.runtime.git import git

SHARED = ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")  # what workers find each other by


def work(
    address: str,
    name: str,
    clone: Clone,
    *,
    jobs: int,
    gpus: float,
    progress: Callable[[], None],
) -> list[str]:
    """Run `sweep work` in `jobs` tasks until all have ended; return the errors of some.

    A task whose node is lost starts again on another one; the trial that it had taken waits again.
    """
    if not clone.remote or "OPTUNA_STORAGE" not in os.environ:
        needed = "a git remote, a DVC remote and OPTUNA_STORAGE"
        raise UserError("--ray", f"needs {needed}: the nodes share nothing else")
    ray = _connect(address)
    url = git("remote", "get-url", clone.remote, at=clone.root).strip()
    env = {key: os.environ[key] for key in SHARED if key in os.environ}
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_work)
    running = [task.remote(name, url, clone.baseline, env) for _ in range(jobs)]
    errors: list[str] = []
    while running:
        ended, running = ray.wait(running, timeout=POLL_SECONDS)
        errors += filter(None, ray.get(ended))
        progress()
    return errors


def _connect(address: str) -> Any:
    try:
        ray: Any = importlib.import_module("ray")  # not in the lock
    except ImportError as error:
        raise UserError("--ray", "Ray is not installed; `pip install ray`") from error
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError("ray", " ".join(str(error).split())) from error
    # The nodes have no `pipeline` before they have cloned it.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray


def _work(name: str, url: str, baseline: str, env: dict[str, str]) -> str:
    """On a node: clone, then work. Returns the last line of what failed, or ""."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        for command in (
            ["git", "clone", "--quiet", url, folder],
            ["git", "checkout", "--quiet", baseline],
            [sys.executable, "-m", "pipeline", "sweep", "work", name],
        ):
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | env,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                return (done.stderr.strip() or str(done.returncode)).splitlines()[-1]
    return ""
