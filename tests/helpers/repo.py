"""A repository with the project in it, and what a person may type there: DVC, git and MLflow for real."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from conftest import ROOT, SMALL, set_params
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.data.catalog import DATASETS


def hears_ctrl_c() -> None:
    """In a new process: a shell has those that it starts in the background ignore SIGINT, also the tests' own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Repo:
    """A git repository with the project in it, as a clone would be, and what a person may type there."""

    def __init__(self, root: Path, mirror: Path, env: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.mirror = mirror
        self.env = dict(env or {})

    def environment(self) -> dict[str, str]:
        """What a person's shell would hand to a command, but for SHELL: as in a container, /bin/sh starts the stages.

        Where that is dash it stays between DVC and what it starts, unless that takes its place.
        """
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "SHELL"))}
        git = {"GIT_CONFIG_GLOBAL": os.devnull}  # no signing, no hooks of whoever runs the tests
        git |= {f"GIT_{who}_{what}": "x@y.z" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**keep, **git, "PATH": path, "MNIST_MIRROR": str(self.mirror), **self.env}

    def run(self, *command: str, ok: bool = True) -> str:
        """Run a command in the repository; its output, or an assertion with it where it did not end as expected."""
        done = subprocess.run(
            command, cwd=self.root, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self.environment(),
        )  # fmt: skip
        assert (done.returncode == 0) is ok, done.stdout
        return done.stdout

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "x")

    def experiment(self, name: str) -> str:
        """The commit of a DVC experiment."""
        (line,) = [
            line for line in self.run("git", "for-each-ref", "refs/exps").splitlines() if line.endswith(f"/{name}")
        ]
        return line.split()[0]

    def set(self, **changes: object) -> None:
        set_params(self.root, changes)

    def metrics(self) -> dict[str, float]:
        return json.loads((self.root / "reports" / "metrics.json").read_text())["test"]

    def store(self) -> MlflowClient:
        """A client. MLflow keeps a database open by its address, also a deleted one: a new file has a new address."""
        if address := self.env.get("MLFLOW_TRACKING_URI"):
            return MlflowClient(tracking_uri=address)
        made = (self.root / "mlflow.db").stat()
        alias = self.root / ".dvc" / "tmp" / f"root-{made.st_ino}-{made.st_ctime_ns}"
        if not alias.exists():
            alias.symlink_to(self.root)
        return MlflowClient(tracking_uri=f"sqlite:///{alias}/mlflow.db")

    def runs(self) -> dict[str, Run]:
        """Every MLflow run of the repository by its name; names are asserted to differ."""
        client = self.store()
        found = client.search_runs([client.get_experiment_by_name("mnist-vae").experiment_id])
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found), sorted(run.info.run_name for run in found)
        return by_name


def plant(root: Path, small_mnist: Path, env: Mapping[str, str] | None = None, **changes: object) -> Repo:
    """The project as it stands here, committed in a repository of its own, with the small subset's sums and params."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    results = ("dvc.lock", "reports/")  # of all of MNIST
    for name in [name for name in listed.stdout.split("\0") if name and not name.startswith(results)]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    use_files(root, small_mnist)
    repo = Repo(root, small_mnist, env)
    repo.set(**SMALL | changes)
    repo.run("git", "init", "-q")
    repo.commit()
    return repo


def use_files(root: Path, folder: Path) -> None:
    """Make the project in `root` accept the files in `folder` as MNIST."""
    catalog = root / "pipeline" / "data" / "catalog.py"
    text = catalog.read_text(encoding="utf-8")
    for name, digest in DATASETS["mnist"].files.items():
        text = text.replace(digest, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    catalog.write_text(text, encoding="utf-8")


def started(output: str) -> list[str]:
    """The stages that DVC ran, by what it printed."""
    return re.findall(r"^Running stage '(\w+)'", output, flags=re.MULTILINE)
