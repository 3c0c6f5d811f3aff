import errno
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from pipeline.runtime import files
from pipeline.runtime.files import checkpoint_path
from pipeline.training import checkpoint as module
from pipeline.training.checkpoint import Checkpoint, CheckpointFile

FINGERPRINT = "a" * 64
SAVED = Checkpoint(
    3, {"model.w": torch.arange(6.0).view(2, 3)}, {"reports/history.csv": b"epoch\n1\n"}
)


@pytest.fixture
def messages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return []


@pytest.fixture
def file(messages):
    return CheckpointFile(FINGERPRINT, messages.append)


def test_a_checkpoint_is_loaded_as_it_was_saved(file, messages):
    assert file.load() is None
    file.save(SAVED)
    loaded = file.load()
    assert (loaded.epoch, loaded.files) == (3, SAVED.files)
    assert loaded.tensors.keys() == SAVED.tensors.keys()
    assert torch.equal(loaded.tensors["model.w"], SAVED.tensors["model.w"])
    loaded.restore_files()
    assert Path("reports/history.csv").read_bytes() == b"epoch\n1\n"
    file.remove()
    assert file.load() is None and messages == []


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "one bit of the checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_corrupt_checkpoint_is_ignored_with_one_message(file, messages, damage):
    file.save(SAVED)
    file.path.write_bytes(damage(file.path.read_bytes()))
    assert file.load() is None and len(messages) == 1
    file.save(SAVED)
    assert file.load().epoch == 3, "the next one replaces it"


def test_a_checkpoint_that_cannot_be_read_is_not_replaced(file, messages):
    file.path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        file.load()
    assert messages == []


def test_a_checkpoint_of_another_training_is_ignored_with_one_message(file, messages):
    CheckpointFile("b" * 64, messages.append).save(SAVED)
    checkpoint_path("b" * 64).rename(file.path)
    assert file.load() is None and len(messages) == 1


def test_a_checkpoint_belongs_to_one_process_at_a_time(file, messages):
    path = checkpoint_path("b" * 64)
    with FileLock(path.with_suffix(".lock")):
        path.touch()
        other = CheckpointFile("b" * 64, messages.append)
        assert not other.is_due() and other.load() is None
        other.remove()
    assert path.exists() and len(messages) == 1 and "another process" in messages[0]


def test_a_full_disk_is_reported_once_and_stops_nothing(file, messages, monkeypatch):
    file.save(SAVED)
    with monkeypatch.context() as patch:

        def full(*arguments, **keywords):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(files.os, "fsync", full)
        file.save(SAVED)
    assert len(messages) == 1 and "No space left" in messages[0]
    assert not file.is_due() and file.load().epoch == 3


def test_checkpoints_take_their_share_of_the_time(file, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def write(path, content):
        nonlocal now
        now += 2.0

    monkeypatch.setattr(module, "atomic_write", write)
    assert file.is_due()
    file.save(SAVED)
    now += 0.99 * 2.0 / module.MAX_SHARE
    assert not file.is_due()
    now += 0.02 * 2.0 / module.MAX_SHARE
    assert file.is_due()
