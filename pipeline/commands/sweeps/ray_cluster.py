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

from tqdm import tqdm

from pipeline.commands.sweeps.experiment import Clone
from pipeline.commands.sweeps.worker import POLL_SECONDS
from pipeline.errors import UserError
from pipeline.runtime.git import git

SHARED = ("OPTUNA_STORAGE", "GPU_JOBS")  # and every variable of MLflow


def work(
    address: str, name: str, clone: Clone, *, jobs: int, gpus: float, progress: Callable[[], None]
) -> None:
    """Run `sweep work` in `jobs` tasks until all have ended; print why one of them ends early.

    A task whose node is lost starts again on another one; the trial that it had taken waits again.
    """
    if not (clone.remote and os.environ.get("OPTUNA_STORAGE")):
        needed = "a git remote, a DVC remote and OPTUNA_STORAGE"
        raise UserError("--ray", f"needs {needed}: the nodes share nothing else")
    ray = _connect(address, gpus)
    url = git("remote", "get-url", clone.remote, at=clone.root).strip()
    env = shared_variables()
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_work)
        running = [task.remote(name, url, clone.baseline, env) for _ in range(jobs)]
    except ValueError as error:
        raise UserError("--gpus", str(error)) from error
    while running:
        ended, running = ray.wait(running, timeout=POLL_SECONDS)
        try:
            ray.get(ended)
        except ray.exceptions.RayError as error:
            lines = str(getattr(error, "cause", error)).splitlines() or [repr(error)]
            tqdm.write(f"sweep: a job ended early: {lines[-1]}")
        progress()


def shared_variables() -> dict[str, str]:
    """The environment variables that jobs get: MLflow's have its address, experiment and login."""
    variables = os.environ.items()
    return {key: value for key, value in variables if key in SHARED or key.startswith("MLFLOW_")}


def _connect(address: str, gpus: float) -> Any:
    """Ray, connected to a cluster of which a node has so many GPUs."""
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
    most = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if gpus > most:
        raise UserError("--gpus", f"no node has {gpus:g} GPUs (the most: {most:g})")
    # The nodes have no `pipeline` before they have cloned it.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray


def _work(name: str, url: str, baseline: str, env: dict[str, str]) -> None:
    """On a node: clone, then work. Raises RuntimeError with the last line of what failed."""
    environment = os.environ | env
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        for command in (
            ["git", "clone", "--quiet", url, folder],
            ["git", "checkout", "--quiet", baseline],
            [sys.executable, "-m", "pipeline", "sweep", "work", name],
        ):
            done = subprocess.run(
                command, cwd=folder, env=environment, check=False, capture_output=True, text=True
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                fatal = (line for line in lines if line.startswith("fatal: "))
                raise RuntimeError(next(fatal, lines[-1]))
