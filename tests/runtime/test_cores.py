"""Concurrent experiments share the cores and take one GPU each. A lock stands for another one."""

from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.runtime import cores
from pipeline.runtime.cores import reserve_gpu, share_of_cores

FOLDER = Path(".dvc/tmp/computing")


@pytest.fixture(autouse=True)
def eight_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cores, "available_cores", lambda: 8)


def locked(name: str) -> FileLock:
    """The lock of another experiment."""
    (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(FOLDER / name).acquire().lock


def test_experiments_divide_the_cores_and_one_that_ends_gives_its_share_back(monkeypatch):
    first = locked("cores/000.lock")
    assert share_of_cores(8) == 4 and share_of_cores(1) == 1, "not more than it asks for"
    third = locked("cores/002.lock")
    assert share_of_cores(8) == 2
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    assert share_of_cores(8) == 1, "at least one"
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    first.release()
    third.release()
    assert share_of_cores(8) == 8
    assert len(list((FOLDER / "cores").iterdir())) == 3


def test_a_gpu_has_one_experiment_at_a_time_and_others_wait_with_a_message(monkeypatch, capsys):
    first, second = locked("gpus/a.lock"), locked("gpus/b.lock")
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: second.release())
    assert reserve_gpu(["a", "b"]) == 1
    assert capsys.readouterr().err == "waiting for the GPU (in use by another experiment)\n"
    first.release()
    assert reserve_gpu(["b"]) == 0, "its own, again"
    assert reserve_gpu(["a", "b"]) == 0


def test_without_locks_nothing_is_divided_and_nothing_fails():
    Path(".dvc").write_text("a file in place of the folder")
    assert share_of_cores(6) == 6
    assert reserve_gpu(["a", "b"]) == 0
