"""The code of an execution through git and back, byte for byte, and failures in git's words."""

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.repo import started

from pipeline.errors import UserError
from pipeline.runtime.git import (
    Experiment,
    Source,
    artifact,
    check_out,
    clone,
    diff_from,
    experiments,
    head,
    here,
    source_of,
    text_at,
    workspace,
)

# Beside and in the changed lines: carriage returns, bytes that are not UTF-8, trailing blanks.
FILES = {
    "windows.py": (b"one = 1\r\ntwo = 2\r\n", b"one = 1\r\ntwo = 3 \r\n"),
    "latin.txt": (b"caf\xe9\nsecond\n", b"caf\xe9\nd\xe9j\xe0 vu\n"),
    "mixed.txt": (
        "naïve\rold\x85\n".encode(),
        "naïve\rnew\x85\u2028\n".encode() + b"\xed\xb3\xa9\n",
    ),
    os.fsdecode(b"caf\xe9.txt"): (b"before\n", b"after\n"),
    "binary": (b"\x00\xff\r\n", b"\x00\xfe\r\n"),
}
USER_CONFIGURATION = {
    "user.name": "x", "user.email": "x@y.z", "core.quotePath": "false", "apply.whitespace": "fix",
    "diff.latin.textconv": "wc -c", "diff.context": "0", "diff.noprefix": "true",
    "diff.external": "false", "diff.mnemonicPrefix": "true", "log.showSignature": "true",
    "color.ui": "always",
}  # fmt: skip


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A DVC repository with FILES committed, under a user's extensive git configuration."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for key, value in USER_CONFIGURATION.items():
        git("config", "--global", key, value)
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    for name, (before, _) in FILES.items():
        Path(name).write_bytes(before)
    Path(".gitattributes").write_text("latin.txt diff=latin\n")
    Path("dvc.yaml").write_text(
        "stages: {copy: {cmd: cp binary copy, deps: [binary], outs: [copy]}}\n"
    )
    git("init", "-q")
    subprocess.run(["dvc", "init", "-q"], check=True)
    git("add", "-A")
    git("commit", "-qm", "x")
    return root


def change_files() -> None:
    for name, (_, after) in FILES.items():
        Path(name).write_bytes(after)


def test_diff_keeps_every_byte_of_workspace_and_experiment(root, tmp_path):
    """The pending-run record stores it as JSON."""
    change_files()
    source = Source(**json.loads(json.dumps(asdict(here()))))
    git("commit", "-qam", "y")
    experiment = Experiment("e", source.baseline, git("rev-parse", "HEAD"), 0)
    assert source_of(experiment, root).diff == source.diff
    names = [line for line in source.diff.splitlines() if line.startswith("diff --git ")]
    assert len(names) == len(FILES) and all(map(str.isascii, names)), "they become part of a tag"
    clone(root, source.baseline, artifact(source), tmp_path / "clone")
    for name, (_, after) in FILES.items():
        assert (tmp_path / "clone" / name).read_bytes() == after


def test_untracked_files_are_named_and_the_diff_still_applies(root, tmp_path):
    change_files()
    for name in ("new.py", os.fsdecode(b"neu\xe9.py")):
        Path(name).touch()
    source = here()
    assert sorted(source.untracked) == ["neu\ufffd.py", "new.py"], "they become part of a tag"
    assert source.dirty and b"in this diff: new.py\n" in artifact(source)
    clone(root, source.baseline, artifact(source), tmp_path / "clone")
    assert (tmp_path / "clone/windows.py").read_bytes() == FILES["windows.py"][1]


@pytest.mark.parametrize(
    ("level", "setting"),
    [
        ("project", "dir = {}"),
        ("user", "dir = {}"),
        ("machine", "dir = {}"),
        ("user", "local = old\n['remote \"old\"']\nurl = {}"),  # of older versions of DVC
    ],
)
def test_clone_ignores_every_configured_cache(root, tmp_path, monkeypatch, level, setting):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "machine"))
    config = root / ".dvc" if level == "project" else tmp_path / level / "dvc"
    config.mkdir(parents=True, exist_ok=True)
    (config / "config").write_text(f"[cache]\n{setting.format(tmp_path / 'cache')}\n")
    git("commit", "-qam", "y", "--allow-empty")
    subprocess.run(["dvc", "repro", "-q"], check=True)
    assert (tmp_path / "cache/runs").is_dir()
    clone(root, git("rev-parse", "HEAD"), b"", tmp_path / "clone")
    executed = subprocess.run(
        ["dvc", "repro"], cwd=tmp_path / "clone", check=True, capture_output=True, text=True
    ).stdout
    assert started(executed) == ["copy"] and (tmp_path / "clone/.dvc/cache/runs").is_dir()


def test_experiments_come_with_baseline_and_time_and_without_running_ones(root):
    commit = git("rev-parse", "HEAD")
    git("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/grid-1", commit)
    git("update-ref", "refs/exps/exec/EXEC_BASELINE", commit)
    seconds = int(
        subprocess.check_output(["git", "cat-file", "commit", "HEAD"]).split(b"> ")[2].split()[0]
    )
    assert experiments(root) == [Experiment("grid-1", commit, commit, seconds * 1000)]
    assert head(root) == Experiment("", commit, commit, seconds * 1000)


def test_workspace_is_an_experiment_once_its_lock_has_changed(root):
    subprocess.run(["dvc", "repro", "-q"], check=True)
    git("add", "-A")
    git("commit", "-qm", "y")
    Path("binary").write_bytes(b"newer")
    assert workspace(root) is None, "nothing has been executed"
    subprocess.run(["dvc", "repro", "-q"], check=True)
    changed = workspace(root)
    assert changed.baseline == git("rev-parse", "HEAD")
    assert text_at(changed.commit, "dvc.lock", root) == Path("dvc.lock").read_text()
    assert text_at(changed.commit, "no such file", root) == ""


def test_a_repository_without_a_commit_is_no_failure(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert (
        here(tmp_path) == Source("", "", "")
        and head(tmp_path) is None
        and experiments(tmp_path) == []
    )
    assert workspace(tmp_path) is None


def test_a_failure_is_reported_in_the_words_of_git(root, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    for function in (here, head, experiments, workspace):
        with pytest.raises(UserError, match="fatal: not a git repository"):
            function(outside)
    with pytest.raises(UserError, match="fatal: bad object"):
        diff_from("f" * 40, at=root)
    (root / ".git/HEAD").write_text("torn")
    with pytest.raises(UserError, match="fatal: not a git repository"):
        here(root)
    monkeypatch.setenv("PATH", str(outside))
    with pytest.raises(UserError, match="No such file or directory") as error:
        experiments(root)
    assert error.value.subject == "git"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the owner of a folder")
def test_a_repository_of_another_user_is_no_empty_repository(root):
    os.chown(root, 12345, 12345)
    with pytest.raises(UserError, match="dubious ownership"):
        experiments(root)


def test_a_commit_or_file_that_does_not_exist_is_named(root, tmp_path):
    with pytest.raises(UserError) as error:
        clone(root, "f" * 40, b"", tmp_path / "clone")
    assert error.value.subject == "f" * 10
    subprocess.run(["dvc", "repro", "-q"], check=True)
    git("add", "-A")
    git("commit", "-qm", "y")
    check_out("HEAD", [Path("copy")], root, tmp_path / "files")
    for name in ("copy", "binary"):
        assert (tmp_path / "files" / name).read_bytes() == FILES["binary"][0]
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(UserError) as error:
        check_out("HEAD", [Path("copy")], root, tmp_path / "again")
    assert error.value.subject == "copy"


def test_the_variables_of_a_git_hook_do_not_redirect_it(root, tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    assert here(root).baseline == commit
