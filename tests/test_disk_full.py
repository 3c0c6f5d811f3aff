"""A full disk at several moments: results stay, and with space again the pipeline completes.

POINTS of them (2), from no free byte to nearly enough.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.repo import Repo

pytestmark = pytest.mark.slow

POINTS = int(os.environ.get("POINTS", "2"))
SIZE = 256 * 1024**2


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs can be mounted by root on Linux only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def copy_with_change(repro_repo: Repo, disk: Path) -> Repo:
    """A copy, logged, with parameters that have not been executed."""
    shutil.rmtree(disk / "repo", ignore_errors=True)
    repo = repro_repo.copy(disk / "repo")
    repo.env["PYTHONDONTWRITEBYTECODE"] = "1"
    repo.run("dvc", "repro")
    repo.set(z_dim=5)
    return repo


@pytest.fixture(scope="module")
def reference(disk, repro_repo) -> tuple[int, dict[str, bytes]]:
    """The bytes that the execution takes on the disk, and its results."""
    repo = copy_with_change(repro_repo, disk)
    free = shutil.disk_usage(disk).free
    repo.run("dvc", "repro")
    return free - shutil.disk_usage(disk).free, repo.state()


@pytest.mark.parametrize("point", range(POINTS))
def test_with_space_again_the_pipeline_ends_in_the_same_bytes(disk, repro_repo, reference, point):
    needed, results = reference
    repo = copy_with_change(repro_repo, disk)
    before = repo.state()
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        space = shutil.disk_usage(disk).free - needed * point // POINTS
        os.posix_fallocate(file.fileno(), 0, space)
    output = repo.run("dvc", "repro", ok=None)
    ballast.unlink()
    assert "Traceback" not in output
    if point % 2:  # the user gives up, and restores what was there
        repo.run("git", "checkout", "-q", "params.yaml")
        repro(repo)
        assert repo.state() == before
        repo.set(z_dim=5)
    repro(repo)
    assert repo.state() == results
    repo.pipeline("log-all")
    runs = [run for run in repo.runs().values() if run.data.params["z_dim"] == "5"]
    assert [run.info.status for run in runs] == ["FINISHED"]
    repo.pipeline("doctor", "--verify")


def repro(repo: Repo) -> None:
    """`dvc repro`, after the command of docs/troubleshooting.md if DVC's lock file is corrupt."""
    if "Unable to read RWLock-file" in repo.run("dvc", "repro", ok=None):
        (repo.root / ".dvc/tmp/rwlock").unlink()
        repo.run("dvc", "repro")
    assert "up to date" in repo.run("dvc", "status")
