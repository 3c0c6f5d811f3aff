"""An execution's code out of git and back: byte for byte, whatever the files hold and whoever has configured what."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.repo import started

from pipeline.tracking.run_note import restore
from pipeline.runtime.git import Experiment, Source, artifact, clone, here, source_of

# Beside lines that are changed, and then in them: carriage returns, bytes that are not UTF-8, blanks at the end.
FILES = {
    "windows.py": (b"one = 1\r\ntwo = 2\r\n", b"one = 1\r\ntwo = 3 \r\n"),
    "latin.txt": (b"caf\xe9\nsecond\n", b"caf\xe9\nd\xe9j\xe0 vu\n"),
    "mixed.txt": ("naïve\rold\x85\n".encode(), "naïve\rnew\x85\u2028\n".encode() + b"\xed\xb3\xa9\n"),
    os.fsdecode(b"caf\xe9.txt"): (b"before\n", b"after\n"),
    "binary": (b"\x00\xff\r\n", b"\x00\xfe\r\n"),
}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository of DVC's with these files committed, on the desk of somebody who has configured a lot."""
    configured = {
        "user.name": "x", "user.email": "x@y.z", "core.quotePath": "false", "apply.whitespace": "fix",
        "diff.latin.textconv": "wc -c", "diff.context": "0",
    }  # fmt: skip
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for key, value in configured.items():
        git("config", "--global", key, value)
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    for name, (before, _) in FILES.items():
        Path(name).write_bytes(before)
    Path(".gitattributes").write_text("latin.txt diff=latin\n")
    Path("dvc.yaml").write_text("stages: {copy: {cmd: cp binary copy, deps: [binary], outs: [copy]}}\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "x"]):
        subprocess.run(command, check=True)
    return root


def change() -> None:
    for name, (_, after) in FILES.items():
        Path(name).write_bytes(after)


def test_the_diff_keeps_every_byte(root, tmp_path):
    """Of the workspace and of an experiment; on the way it lies in a claim, which is JSON."""
    change()
    source = Source(**json.loads(json.dumps(asdict(here()))))
    git("commit", "-qam", "y")
    assert source_of(Experiment("e", source.baseline, git("rev-parse", "HEAD"), 0), root).diff == source.diff
    names = [line for line in source.diff.splitlines() if line.startswith("diff --git ")]
    assert len(names) == len(FILES) and all(map(str.isascii, names)), "they go into a tag"
    for line in (b" caf\xe9\n", b"+two = 3 \r\n", b"+\xed\xb3\xa9\n"):
        assert b"\n" + line in artifact(source)
    clone(root, source.baseline, artifact(source), tmp_path / "clone")
    assert {name: (tmp_path / "clone" / name).read_bytes() for name in FILES} == {
        name: after for name, (_, after) in FILES.items()
    }


def test_what_is_not_in_git_is_named_and_the_diff_fits_nevertheless(root, tmp_path):
    change()
    for name in ("new.py", os.fsdecode(b"neu\xe9.py")):
        Path(name).touch()
    source = here()
    assert sorted(source.untracked) == ["neu\ufffd.py", "new.py"], "they go into a tag"
    assert artifact(source).startswith(b"# not in git, and therefore not in this diff: neu")
    clone(root, source.baseline, artifact(source), tmp_path / "clone")
    assert (tmp_path / "clone/windows.py").read_bytes() == FILES["windows.py"][1]


@pytest.mark.parametrize(
    ("level", "setting"),
    [
        ("project", "dir = {}"), ("user", "dir = {}"), ("machine", "dir = {}"),
        ("user", "local = old\n['remote \"old\"']\nurl = {}"),  # as older versions of DVC had it
    ],
)  # fmt: skip
def test_a_clone_takes_nothing_out_of_a_cache_wherever_one_is_configured(root, tmp_path, monkeypatch, level, setting):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "machine"))
    config = root / ".dvc" if level == "project" else tmp_path / level / "dvc"
    config.mkdir(parents=True, exist_ok=True)
    (config / "config").write_text(f"[cache]\n{setting.format(tmp_path / 'cache')}\n")
    git("commit", "-qam", "y", "--allow-empty")
    subprocess.run(["dvc", "repro", "-q"], check=True)
    assert (tmp_path / "cache/runs").is_dir()
    clone(root, git("rev-parse", "HEAD"), b"", tmp_path / "clone")
    command = ["dvc", "repro"]
    said = subprocess.run(command, cwd=tmp_path / "clone", check=True, capture_output=True, text=True).stdout
    assert started(said) == ["copy"] and (tmp_path / "clone/.dvc/cache/runs").is_dir()


@pytest.mark.usefixtures("root")
def test_what_brings_a_run_back_brings_its_own_files():
    """Also where its inputs were committed before it ran: the dvc.lock of that commit is an older run's."""
    subprocess.run(["dvc", "repro", "-q"], check=True)
    git("add", "-A")
    git("commit", "-qm", "an older run")
    Path("binary").write_bytes(b"newer")
    git("commit", "-qam", "what is to be run")
    subprocess.run(["dvc", "repro", "-q"], check=True)
    command = restore(here())
    git("add", "-A")
    git("commit", "-qm", "its results")
    Path("copy").unlink()
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert Path("copy").read_bytes() == b"newer"
