"""The doctor in repositories in which the problems really exist, and the commands that it names."""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import use_folder
from filelock import FileLock
from helpers.repo import Repo

from pipeline.commands import doctor as command
from pipeline.runtime.pending_run import PendingRun

REPRO = "z4-h32x1-relu-lr0.001-e3-s0"
HEALTHY = "doctor: no problems\n"


@pytest.fixture(scope="module")
def repo(repro_repo, tmp_path_factory) -> Repo:
    """After `dvc repro`, committed. Each test leaves it healthy."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("doctor") / "repo")
    repo.run("dvc", "repro")
    repo.commit()
    return repo


@pytest.fixture
def doctor(repo, monkeypatch, capsys) -> Callable[..., list[str]]:
    """Runs the command in process; returns its problems."""
    use_folder(monkeypatch, repo.root)

    def run(*options: str) -> list[str]:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        status = 0
        try:
            command.main(parser.parse_args(options))
        except SystemExit as end:
            status = end.code
        *lines, last = capsys.readouterr().out.splitlines()
        assert status == (last != HEALTHY.strip())
        return lines

    return run


def follow(repo: Repo, line: str) -> None:
    """Type the command of a problem."""
    repo.run("bash", "-c", line.rpartition(": ")[2])


def test_a_healthy_repository_and_a_fresh_clone_have_no_problems(repo, doctor, tmp_path):
    assert doctor() == doctor("--fix") == doctor("--verify") == []
    repo.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Repo(tmp_path / "clone", repo.mirror)
    assert clone.pipeline("doctor") == HEALTHY
    assert not (clone.root / "mlflow.db").exists()


def test_an_experiment_without_a_run_is_logged(repo, doctor):
    commit = repo.run("git", "rev-parse", "HEAD").strip()
    repo.run("git", "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/lost", commit)
    (line,) = doctor()
    assert line.startswith("doctor: experiment lost has no MLflow run: ")
    follow(repo, line)
    assert doctor() == []


def test_a_run_left_running_is_ended_unless_a_process_works(repo, doctor):
    client, run = repo.store(), repo.runs()[REPRO]
    tags = {"execution": "0" * 32}
    left = client.create_run(run.info.experiment_id, run_name="left", tags=tags)
    PendingRun("left", "f" * 64, {}, "0" * 32).save()
    with FileLock(repo.root / ".dvc/tmp/computing/cores/000.lock"):
        assert doctor() == []
    (line,) = doctor()
    assert line.startswith("doctor: run left is RUNNING")
    (line,) = doctor("--fix")
    assert line.startswith("doctor: fixed: run left is RUNNING")
    assert client.get_run(left.info.run_id).info.status == "KILLED" and doctor() == []
    client.delete_run(left.info.run_id)


def test_a_run_without_its_artifacts_is_completed(repo, doctor):
    shutil.rmtree(repo.root / "mlartifacts" / repo.runs()[REPRO].info.run_id)
    (line,) = doctor()
    assert line.startswith(f"doctor: run {REPRO} has lost artifacts: ")
    follow(repo, line)
    assert doctor() == []


@pytest.mark.slow
def test_a_corrupt_file_is_found_although_dvc_trusts_it(repo, doctor):
    model = repo.root / "data/vae.safetensors"
    content = model.read_bytes()
    in_cache = [*(repo.root / ".dvc/cache/files/md5").glob("*/*")]
    (cached,) = (path for path in in_cache if path.read_bytes() == content)
    for path in (cached, model):
        flip_bit(path)
        assert "up to date" in repo.run("dvc", "status")
        (line,) = doctor("--verify")
        assert path.relative_to(repo.root).as_posix() in line
        follow(repo, line)
        assert model.read_bytes() == content and doctor("--verify") == []


def flip_bit(path: Path) -> None:
    """As a disk does it: time, size, mode and inode stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
def test_a_moved_repository_and_a_damaged_store_are_rebuilt(repo, tmp_path):
    moved = Repo(tmp_path / "moved", repo.mirror)
    repo.root.rename(moved.root)
    try:
        line = moved.pipeline("doctor", ok=False).splitlines()[0]
        assert "was moved or copied: mv mlflow.db mlflow.db.old && " in line
        for arguments in (["log-all"], ["reproduce", REPRO]):
            assert line.partition("MLflow: ")[2] in moved.pipeline(*arguments, ok=False)
        assert not repo.root.exists()
        follow(moved, line)
        assert moved.pipeline("doctor") == HEALTHY
        (moved.root / "mlflow.db").write_bytes(b"no database" * 100)
        follow(moved, moved.pipeline("doctor", ok=False).splitlines()[0])
        assert moved.pipeline("doctor") == HEALTHY
    finally:
        moved.root.rename(repo.root)
