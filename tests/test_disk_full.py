"""A disk that is full, sooner or later: what was there stays, and with room again the pipeline ends as it should.

POINTS of them (4, or 20 for the long form), each a little later: from no byte free to one short of what is needed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.repo import Repo, plant

POINTS = int(os.environ.get("POINTS", "4"))
SIZE = 256 * 1024**2


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.getuid() != 0
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a tmpfs can be mounted by root on Linux only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def origin(tmp_path_factory, small_mnist) -> Repo:
    repo = plant(tmp_path_factory.mktemp("origin"), small_mnist, {"PYTHONDONTWRITEBYTECODE": "1"})
    repo.run("dvc", "repro")
    repo.commit()
    return repo


def copy(origin: Repo, to: Path) -> Repo:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(origin.root, to, symlinks=True)
    repo = Repo(to, origin.mirror, origin.env)
    # A database knows where its artifacts are: this folder has a store of its own.
    (to / "mlflow.db").unlink()
    shutil.rmtree(to / "mlartifacts")
    return repo


def state(repo: Repo) -> dict[str, bytes]:
    paths = [repo.root / "dvc.lock", repo.root / "data/model/vae.safetensors", *(repo.root / "reports").rglob("*")]
    return {path.relative_to(repo.root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def needed(disk, origin) -> tuple[int, dict[str, bytes], dict[str, bytes]]:
    """The bytes that an experiment takes on the disk, the state before it, and the one after it."""
    repo = copy(origin, disk / "repo")
    before = state(repo)
    free = shutil.disk_usage(disk).free
    repo.set(z_dim=5)
    repo.run("dvc", "repro")
    return free - shutil.disk_usage(disk).free, before, state(repo)


@pytest.mark.parametrize("point", range(POINTS))
def test_nothing_is_lost_and_with_room_it_ends_well(disk, origin, needed, point, capsys):
    need, before, after = needed
    repo = copy(origin, disk / "repo")
    repo.set(z_dim=5)
    room = need * point // POINTS
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
    try:
        done = subprocess.run(
            ["dvc", "repro"], cwd=repo.root, env=repo.environment(), capture_output=True, text=True, check=False
        )
    finally:
        ballast.unlink()
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said

    with capsys.disabled():
        (last,) = [line for line in said.splitlines() if line.strip()][-1:] or [""]
        print(f"{room / 1024:.0f} KiB of {need / 1024:.0f}: exit {done.returncode}: {last[:100]}")
    if point % 2:  # a person who gives up, and wants back what was there
        repo.run("git", "checkout", "-q", "params.yaml")
        repro(repo)
        assert state(repo) == before
        repo.set(z_dim=5)
    repro(repo)
    assert state(repo) == after
    assert "Data and pipelines are up to date" in repo.run("dvc", "status")
    repo.run("python", "-m", "pipeline.stages.log", "--all")
    runs = [run for run in repo.runs().values() if run.data.params["z_dim"] == "5"]
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    assert repo.run("python", "-m", "pipeline.commands.doctor", "--verify") == "doctor: every byte is what DVC recorded\n"


def repro(repo: Repo) -> None:
    """`dvc repro`, after the doctor where DVC's own lock file was torn."""
    done = subprocess.run(
        ["dvc", "repro"], cwd=repo.root, env=repo.environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        assert "rwlock" in done.stdout + done.stderr, done.stdout + done.stderr
        repo.run("python", "-m", "pipeline.commands.doctor", "--fix")
        repo.run("dvc", "repro")
