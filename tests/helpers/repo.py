"""A git repository with the project in it, and what a user types there: DVC, git and MLflow."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from conftest import ROOT, SMALL, set_params
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.data.catalog import DATASETS


class Repo:
    """A git repository with the project in it, as in a clone, and what a user types there."""

    def __init__(self, root: Path, mirror: Path, env: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.mirror = mirror
        self.env = dict(env or {})

    def copy(self, root: Path) -> "Repo":
        """A copy in a new folder. MLflow's store has absolute paths in it and stays behind."""
        shutil.copytree(self.root, root, symlinks=True, ignore=_tracking_store, dirs_exist_ok=True)
        return Repo(root, self.mirror, self.env)

    def environment(self) -> dict[str, str]:
        """A user's shell variables without SHELL: as in a container, /bin/sh starts the stages.

        dash stays between DVC and what it starts, unless that is started with `exec`.
        """
        dropped = ("DVC_", "MLFLOW_", "SHELL")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        # No signing, and no hooks of whoever runs the tests.
        git = {"GIT_CONFIG_GLOBAL": os.devnull}
        for who in ("AUTHOR", "COMMITTER"):
            git |= {f"GIT_{who}_NAME": "x", f"GIT_{who}_EMAIL": "x@y.z"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, **git, "PATH": path, "MNIST_MIRROR": str(self.mirror), **self.env}

    def run(self, *command: str, ok: bool | None = True) -> str:
        """Run a command in the repository and return its output; assert that it succeeded.

        ok: False asserts that it failed, None accepts both.
        """
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(), text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert ok is None or (done.returncode == 0) is ok, done.stdout
        return done.stdout

    def pipeline(self, *arguments: str, ok: bool | None = True) -> str:
        """Run `python -m pipeline`."""
        return self.run("python", "-m", "pipeline", *arguments, ok=ok)

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "x")

    def experiment(self, name: str) -> str:
        """The commit of a DVC experiment."""
        lines = self.run("git", "for-each-ref", "refs/exps").splitlines()
        (commit,) = (line.split()[0] for line in lines if line.endswith(f"/{name}"))
        return commit

    def set(self, **changes: object) -> None:
        set_params(self.root, changes)

    def run_queue(self, jobs: int = 1, seconds: float = 600) -> str:
        """Run all queued experiments; return what `dvc queue status` reports at the end."""
        # A worker keeps the stdout that it was started with.
        self.run("bash", "-c", f"dvc queue start -j {jobs} > .dvc/tmp/workers.log 2>&1")
        end = time.monotonic() + seconds
        while re.search("Queued|Running", status := self.run("dvc", "queue", "status")):
            assert time.monotonic() < end, status
            time.sleep(1)
        return status

    def state(self) -> dict[str, bytes]:
        """Everything that `dvc repro` writes, apart from the MLflow store, by path."""
        paths = [self.root / "dvc.lock", *(self.root / "reports").rglob("*.*")]
        paths += (self.root / "data").glob("*.safetensors")
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in paths}

    def metrics(self) -> dict[str, float]:
        return json.loads((self.root / "reports" / "metrics.json").read_text())["test"]

    def store(self) -> MlflowClient:
        """A client. MLflow keeps a database open by its path, so a new file gets a new path."""
        address = self.env.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        if not address.startswith("sqlite:///"):
            return MlflowClient(tracking_uri=address)
        file = self.root / address.removeprefix("sqlite:///")
        made = file.stat()
        alias = self.mirror.parent / f"root-{made.st_ino}-{made.st_ctime_ns}"
        if not alias.exists():
            alias.symlink_to(file.parent)
        return MlflowClient(tracking_uri=f"sqlite:///{alias}/{file.name}")

    def runs(self) -> dict[str, Run]:
        """Every MLflow run of the repository by its name; asserts that names differ."""
        client = self.store()
        found = client.search_runs([client.get_experiment_by_name("mnist-vae").experiment_id])
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found), sorted(run.info.run_name for run in found)
        return by_name


def _tracking_store(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(("mlflow.db", "mlartifacts"))]


def plant(
    root: Path, small_mnist: Path, env: Mapping[str, str] | None = None, **changes: object
) -> Repo:
    """The project as it stands here, committed in a new repository, for the small dataset."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        # dvc.lock and reports/ are results of all of MNIST.
        if (ROOT / name).is_file() and not name.startswith(("dvc.lock", "reports/")):
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


def litter(folder: Path) -> None:
    """Leave what editors, file managers and people leave in a folder."""
    (folder / "folder").mkdir(parents=True)
    names = (".DS_Store", "._generated-epoch-0001.png", "._network.py", "~$a.csv", "notes.txt")
    names += ("network (copy).py",)
    for name in (*names, "folder/notes.txt"):
        (folder / name).write_bytes(b"\0")
    (folder / ".#network.py").symlink_to("user@host.1234")  # Emacs's lock
    (folder / "broken").symlink_to("missing")
    os.mkfifo(folder / "pipe")


def started(output: str) -> list[str]:
    """The stages that DVC executed, by its output."""
    return re.findall(r"^Running stage '(\w+)'", output, flags=re.MULTILINE)
