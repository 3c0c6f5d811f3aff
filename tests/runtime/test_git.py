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
from pipeline.runtime import git
from pipeline.runtime.git import Experiment, Source
from pipeline.tracking import run_note

# Beside and in the changed lines: carriage returns, bytes that are not UTF-8, trailing blanks.
FILES = {
    "windows.py": (b"one = 1\r\ntwo = 2\r\n", b"one = 1\r\ntwo = 3 \r\n"),
    "latin.txt": (b"caf\xe9\nsecond\n", b"caf\xe9\nd\xe9j\xe0 vu\n"),
    "mixed.txt": ("naïve\rold\x85\n".encode(), "é\rnew\x85\u2028\n".encode() + b"\xed\xb3\xa9\n"),
    os.fsdecode(b"caf\xe9.txt"): (b"before\n", b"after\n"),
    "binary": (b"\x00\xff\r\n", b"\x00\xfe\r\n"),
}
USER_CONFIGURATION = {
    "user.name": "x", "user.email": "x@y.z", "core.quotePath": "false", "apply.whitespace": "fix",
    "diff.latin.textconv": "wc -c", "diff.context": "0", "diff.noprefix": "true",
    "diff.external": "false", "diff.mnemonicPrefix": "true", "log.showSignature": "true",
    "color.ui": "always", "diff.relative": "true",
    "diff.submodule": "log", "diff.ignoreSubmodules": "all",
    "core.fsmonitor": "false", "core.pager": "false", "status.short": "true",
    "status.showUntrackedFiles": "no", "alias.diff": "!false",
}  # fmt: skip
IN_A_SUBFOLDER = pytest.mark.parametrize("root", ["", "mono/café"], indirect=True)


def run_git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], text=True).strip()


def commit() -> str:
    run_git("add", "-A")
    run_git("commit", "-qm", "x")
    return run_git("rev-parse", "HEAD")


def repro(folder: Path = Path()) -> list[str]:
    """Run `dvc repro`; the stages that were executed."""
    return started(subprocess.check_output(["dvc", "repro"], cwd=folder, text=True))


@pytest.fixture
def root(tmp_path, monkeypatch, request) -> Path:
    """A DVC repository with FILES committed, under a user's extensive git configuration.

    The parameter is the path of the DVC repository in that of git.
    """
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    for key, value in USER_CONFIGURATION.items():
        run_git("config", "--global", key, value)
    top = tmp_path / "root"
    root = top / getattr(request, "param", "")
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    for name, (before, _) in FILES.items():
        Path(name).write_bytes(before)
    Path(".gitattributes").write_text("latin.txt diff=latin\n")
    stage = "{cmd: cp binary copy, deps: [binary], outs: [copy]}"
    Path("dvc.yaml").write_text(f"stages: {{copy: {stage}}}\n")
    run_git("init", "-q", str(top))
    # `dvc init` takes a second.
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    Path(".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    commit()
    return root


def change_files() -> None:
    for name, (_, after) in FILES.items():
        Path(name).write_bytes(after)


@IN_A_SUBFOLDER
def test_diff_keeps_every_byte_of_workspace_and_experiment(root, tmp_path):
    """The pending-run record stores it as JSON."""
    change_files()
    source = Source(**json.loads(json.dumps(asdict(git.here()))))
    experiment = Experiment("e", source.baseline, commit(), 0)
    assert git.source_of(experiment, root).diff == source.diff
    names = [line for line in source.diff.splitlines() if line.startswith("diff --git ")]
    assert len(names) == len(FILES) and all(map(str.isascii, names)), "they become part of a tag"
    git.clone(root, source.baseline, git.artifact(source), tmp_path / "clone")
    for name, (_, after) in FILES.items():
        assert (tmp_path / "clone" / name).read_bytes() == after


@IN_A_SUBFOLDER
@pytest.mark.parametrize("changed", [True, False])
def test_untracked_files_are_named_and_the_code_is_restored_nevertheless(root, tmp_path, changed):
    if changed:
        change_files()
    for name in ("new.py", os.fsdecode(b"neu\xe9.py")):
        Path(name).touch()
    source = git.here()
    names = [Path(name).name for name in source.untracked]
    assert sorted(names) == ["neu\ufffd.py", "new.py"], "they become part of a tag"
    assert source.dirty
    git.clone(root, source.baseline, git.artifact(source), tmp_path / "clone")
    assert (tmp_path / "clone/binary").read_bytes() == FILES["binary"][changed]
    Path("git.diff").write_bytes(git.artifact(source))
    run_git("checkout", "-q", ".")
    command = run_note.restore(source).replace("dvc repro", "true")
    subprocess.run(["bash", "-c", command], check=True)
    assert Path("binary").read_bytes() == FILES["binary"][changed]


@IN_A_SUBFOLDER
def test_no_mark_in_the_index_hides_a_change(root, tmp_path):
    """A sparse checkout marks what it leaves out: that is no change."""
    Path("absent").touch()
    commit()
    change_files()
    expected = git.here(root)
    names = list(FILES)
    run_git("update-index", "--skip-worktree", "absent", *names[1:])
    run_git("update-index", "--assume-unchanged", *names[:2])
    Path("absent").unlink()
    assert run_git("status", "--porcelain", "-uno") == ""
    before = Path(run_git("rev-parse", "--git-path", "index")).read_bytes()
    assert git.here(root) == expected and expected.dirty
    assert Path(run_git("rev-parse", "--git-path", "index")).read_bytes() == before
    git.clone(root, expected.baseline, git.artifact(git.here(root)), tmp_path / "clone")
    assert (tmp_path / "clone/binary").read_bytes() == FILES["binary"][1]


def test_files_are_those_of_the_commit_whatever_the_user_has_configured(root, tmp_path):
    Path("binary").chmod(0o755)
    commit()
    run_git("config", "core.autocrlf", "true")
    attributes = "binary export-ignore\n* text=auto eol=crlf\n"
    Path(".git/info/attributes").write_text(attributes)
    git.check_out("HEAD", [], root, tmp_path / "files")
    git.clone(root, "HEAD", b"", tmp_path / "clone")
    for folder in ("files", "clone"):
        for name, (content, _) in FILES.items():
            assert (tmp_path / folder / name).read_bytes() == content
            assert os.access(tmp_path / folder / name, os.X_OK) is (name == "binary")


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="signs the commit")
def test_a_signed_commit_is_read_although_signatures_are_shown(root, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    for name, value in {"gpg.format": "ssh", "user.signingKey": f"{key}.pub"}.items():
        run_git("config", name, value)
    run_git("commit", "-q", "-S", "-m", "x", "--allow-empty")
    assert "signature" in run_git("log", "-1", "--format=")
    made = run_git("log", "-1", "--no-show-signature", "--format=%ct")
    assert git.head(root).made == 1000 * int(made)


def test_clone_ignores_every_configured_cache(root, tmp_path, monkeypatch):
    """Also the key that older versions of DVC wrote."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    cache, user = tmp_path / "cache", tmp_path / "dvc/config"
    user.parent.mkdir()
    user.write_text(f"[cache]\nlocal = old\n['remote \"old\"']\nurl = {cache}\n")
    Path(".dvc/config").write_text(f"[cache]\ndir = {cache}\n")
    repro()
    assert (cache / "runs").is_dir()
    git.clone(root, commit(), b"", tmp_path / "clone")
    assert repro(tmp_path / "clone") == ["copy"]
    assert (tmp_path / "clone/.dvc/cache/runs").is_dir()


def test_experiments_come_with_baseline_and_time_and_without_running_ones(root):
    last = run_git("rev-parse", "HEAD")
    run_git("update-ref", f"refs/exps/{last[:2]}/{last[2:]}/grid-1", last)
    run_git("update-ref", "refs/exps/exec/EXEC_BASELINE", last)
    made = 1000 * int(run_git("log", "-1", "--format=%ct"))
    assert git.experiments(root) == [Experiment("grid-1", last, last, made)]
    assert git.head(root) == Experiment("", last, last, made)


@IN_A_SUBFOLDER
def test_workspace_is_an_experiment_once_its_lock_has_changed(root):
    repro()
    commit()
    Path("binary").write_bytes(b"newer")
    assert git.workspace(root) is None, "nothing has been executed"
    repro()
    changed = git.workspace(root)
    assert changed.baseline == run_git("rev-parse", "HEAD")
    names = [f"{changed.commit}:./{name}" for name in ("dvc.lock", "no such file")]
    assert list(git.blobs(names, root)) == [Path("dvc.lock").read_bytes(), b""]
    commit()
    os.utime("dvc.lock", (0, 0))
    assert git.workspace(root) is None, "touched only"


def test_a_merge_in_progress_matters_only_if_the_results_have_changed(root):
    Path("dvc.lock").touch()
    commit()
    for branch in ("one", "other"):
        run_git("checkout", "-qB", branch, "master")
        Path("latin.txt").write_text(branch)
        commit()
    with pytest.raises(subprocess.CalledProcessError):
        run_git("merge", "one")
    assert git.workspace(root) is None
    Path("dvc.lock").write_text("newer")
    with pytest.raises(UserError, match="Cannot save"):
        git.workspace(root)


def test_a_repository_without_a_commit_is_no_failure(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert git.here(tmp_path) == Source("", "", "") and git.here(tmp_path).dirty
    assert git.head(tmp_path) is git.workspace(tmp_path) is None
    assert git.experiments(tmp_path) == []


def test_a_failure_is_reported_in_the_words_of_git(root, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    for function in (git.here, git.head, git.experiments, git.workspace):
        with pytest.raises(UserError, match="fatal: not a git repository"):
            function(outside)
    with pytest.raises(UserError, match="fatal: bad object"):
        git.diff_from("f" * 40, at=root)
    (root / ".git/HEAD").write_text("torn")
    with pytest.raises(UserError, match="fatal: not a git repository"):
        git.here(root)
    monkeypatch.setenv("PATH", str(outside))
    with pytest.raises(UserError, match="No such file or directory") as error:
        git.experiments(root)
    assert error.value.subject == "git"


@IN_A_SUBFOLDER
def test_a_commit_or_file_that_does_not_exist_is_named(root, tmp_path):
    with pytest.raises(UserError) as error:
        git.clone(root, "f" * 40, b"", tmp_path / "clone")
    assert error.value.subject == "f" * 10
    repro()
    Path("linked").symlink_to("binary")
    Path("disk").symlink_to(tmp_path)
    commit()
    git.check_out("HEAD", [Path("copy")], root, tmp_path / "files")
    for name in ("copy", "binary", "linked"):
        assert (tmp_path / "files" / name).read_bytes() == FILES["binary"][0]
    assert not (tmp_path / "files/disk").is_symlink(), "it leads elsewhere"
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(UserError) as error:
        git.check_out("HEAD", [Path("copy")], root, tmp_path / "again")
    assert error.value.subject == "copy"
    subprocess.run(["dvc", "remote", "add", "-dq", "x", "ssh://127.0.0.1:1/x"], check=True)
    with pytest.raises(UserError) as error:
        git.check_out(commit(), [Path("copy")], root, tmp_path / "third")
    assert error.value.subject == "dvc", "no NoResultsError, which is no failure"


def test_the_variables_of_a_git_hook_do_not_redirect_it(root, tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    last = run_git("rev-parse", "HEAD")
    change_files()
    expected = git.here(root)
    for name in {*run_git("rev-parse", "--local-env-vars").split()} - {"GIT_CONFIG_COUNT"}:
        monkeypatch.setenv(name, str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u0")
    for name in ("GIT_EXTERNAL_DIFF", "GIT_LITERAL_PATHSPECS"):
        monkeypatch.setenv(name, "true")
    assert git.here(root) == expected and expected.baseline == last


def test_experiments_are_sorted_by_time(root, monkeypatch):
    last = run_git("rev-parse", "HEAD")
    for name, date in (("b", "1000000000 +0000"), ("a", "1000000001 +0000")):
        monkeypatch.setenv("GIT_COMMITTER_DATE", date)
        run_git("commit", "-q", "--allow-empty", "-m", "x")
        run_git("update-ref", f"refs/exps/{last[:2]}/{last[2:]}/{name}", "HEAD")
    assert [experiment.name for experiment in git.experiments(root)] == ["b", "a"]
