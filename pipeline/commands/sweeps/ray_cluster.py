"""Workers on the nodes of a Ray cluster, each in a clone of its own."""

import importlib
import logging
import os
import socket
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
    most = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if gpus > most:
        raise UserError("--gpus", f"no node has {gpus:g} GPUs (the most: {most:g})")
    url = git("remote", "get-url", clone.remote, at=clone.root).strip()
    env = {key: os.environ[key] for key in SHARED if key in os.environ}
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_work)
        running = [task.remote(name, url, clone.baseline, env) for _ in range(jobs)]
    except ValueError as error:
        raise UserError("--gpus", str(error)) from error
    errors: list[str] = []
    while running:
        ended, running = ray.wait(running, timeout=POLL_SECONDS)
        try:
            errors += filter(None, ray.get(ended))
        except ray.exceptions.RayError as error:
            errors.append(str(error).strip().splitlines()[-1])
        progress()
    return errors


def _connect(address: str) -> Any:
    try:
        ray: Any = importlib.import_module("ray")  # not in the lock
    except ImportError as error:
        raise UserError("--ray", "Ray is not installed; `pip install ray`") from error
    try:
        host, colon, port = address.rpartition(":")
        if colon and "/" not in host:  # Ray itself tries for a quarter of an hour
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
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
                lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                return next((line for line in lines if line.startswith("fatal: ")), lines[-1])
    return ""
