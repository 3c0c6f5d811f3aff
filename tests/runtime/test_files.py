import errno
import hashlib
import os
from pathlib import Path

import pytest

from pipeline.runtime.files import atomic_write, home, sha256_file


def test_home_is_the_root_that_dvc_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert home() == tmp_path.resolve()
    monkeypatch.setenv("DVC_ROOT", "/a/repository")
    assert home() == Path("/a/repository")


def test_a_written_file_has_the_content_and_its_sha256(tmp_path):
    path = tmp_path / "new/folder/file"
    for content in (b"one", b"two"):
        atomic_write(path, content)
        assert path.read_bytes() == content
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path, monkeypatch, operation):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = os if operation == "fsync" else Path
    monkeypatch.setattr(owner, operation, full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
