"""Concurrent experiments share the cores and the GPUs. A lock stands for another one."""

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


def test_gpus_have_equally_many_experiments_and_others_wait_with_a_message(monkeypatch, capsys):
    first = locked("gpus/a-0.lock")
    assert reserve_gpu(["a", "b"], 2) == 1, "the one with fewer"
    locks = [first, *(locked(f"gpus/{name}.lock") for name in ("a-1", "c-0", "c-1"))]
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: locks[2].release())
    assert reserve_gpu(["a", "c"], 2) == 1
    assert capsys.readouterr().err == "waiting for the GPU (in use by other experiments)\n"
    locks[1].release()
    assert reserve_gpu(["a"], 2) == 0


def test_without_locks_nothing_is_divided_and_nothing_fails():
    Path(".dvc").write_text("a file in place of the folder")
    assert share_of_cores(6) == 6
    assert reserve_gpu(["a", "b"], 1) == 0
