import errno
import hashlib
import os
from pathlib import Path

import pytest
from conftest import error_about

from pipeline.runtime.files import atomic_write, home, sha256_file, write_output


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


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_output_that_is_a_link_becomes_a_file(tmp_path, link):
    """DVC links outputs to its cache, if it is configured to."""
    cached, path = tmp_path / "cached", tmp_path / "output"
    cached.write_bytes(b"old")
    cached.chmod(0o444)
    link(cached, path)
    write_output(path, b"new")
    assert cached.read_bytes() == b"old" and path.read_bytes() == b"new"


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with error_about(tmp_path / "folder/output"):
        write_output(tmp_path / "folder/output", b"")
