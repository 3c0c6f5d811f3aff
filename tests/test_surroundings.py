"""The four commands in ordinary surroundings: states of git, names of folders, stores, files.

Each of ROWS combines one of each kind. No command may end in a traceback, change what is not its
own, or report success with something missing. All rows take about half an hour and run by hand:
`python -m pytest tests/test_surroundings.py --surroundings`. Every tenth one but the
first runs with the slow tests.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.failing_servers import refusing
from helpers.mlflow_contents import assert_whole
from helpers.repo import Repo
from helpers.servers import mlflow_server

FOLDERS = [
    "plain", "café", "cafe\u0301", "with blank", "100% & more", "a#b", "what?", "it's",
    "(x) [y] {z}", "+@=;,", "漢字", "$HOME",
]  # fmt: skip


def foreign_git(repo: Repo) -> None:
    """A checkout of another user."""
    repo.env["GIT_TEST_ASSUME_DIFFERENT_OWNER"] = "1"


def without_git(repo: Repo) -> None:
    """A PATH with Python and DVC, and without git."""
    tools = repo.root.parent / "tools"
    tools.mkdir()
    for name in ("python", "dvc"):
        (tools / name).symlink_to(shutil.which(name, path=repo.environment()["PATH"]))
    repo.env["PATH"] = str(tools)


def conflict(repo: Repo) -> None:
    """A merge that has stopped at a conflict in params.yaml."""
    for branch, value in (("one", 11), ("other", 12)):
        repo.run("git", "checkout", "-q", "-b", branch, "master")
        repo.set(eval_samples=value)
        repo.commit()
    repo.run("git", "merge", "-q", "one", ok=False)


def fresh_clone(repo: Repo) -> None:
    """A clone without DVC's cache and without experiments."""
    repo.run("git", "clone", "-q", ".", "../clone")
    shutil.rmtree(repo.root)
    (repo.root.parent / "clone").rename(repo.root)


def shallow_clone(repo: Repo) -> None:
    """HEAD without its history, with DVC's cache."""
    repo.run("git", "clone", "-q", "--depth", "1", repo.root.absolute().as_uri(), "../clone")
    shutil.copytree(repo.root / ".dvc" / "cache", repo.root.parent / "clone" / ".dvc" / "cache")
    shutil.rmtree(repo.root)
    (repo.root.parent / "clone").rename(repo.root)


def worktree(repo: Repo) -> None:
    """A second working tree of the repository, without DVC's cache."""
    repo.run("git", "worktree", "add", "-q", "-b", "second", "../second")
    repo.root = repo.root.parent / "second"


def subfolder(repo: Repo) -> None:
    """The project in a folder of a larger repository. Its experiments stay behind."""
    shutil.rmtree(repo.root / ".git")
    whole = repo.root.with_name("whole")
    whole.mkdir()
    repo.root = repo.root.rename(whole / "vae")
    subprocess.run(["git", "init", "-q", whole], check=True)
    repo.commit()


def no_commit(repo: Repo) -> None:
    """A repository that has no commit yet."""
    shutil.rmtree(repo.root / ".git")
    repo.run("git", "init", "-q")


def not_executed(repo: Repo) -> None:
    """Parameters that were committed before they were executed."""
    repo.set(eval_samples=7)
    repo.commit()


GIT: dict[str, Callable[[Repo], object]] = {
    "clean": lambda _: None,
    "another owner": foreign_git,
    "untracked notes": lambda repo: (repo.root / "notes.txt").write_text("note\n"),
    "changed parameter": lambda repo: repo.set(z_dim=3),
    "committed parameter": not_executed,
    "detached HEAD": lambda repo: repo.run("git", "checkout", "-q", "--detach"),
    "no git": without_git,
    "signatures": lambda repo: repo.run("git", "config", "log.showSignature", "true"),
    "line endings": lambda repo: repo.run("git", "config", "core.autocrlf", "true"),
    "conflict": conflict,
    "fresh clone": fresh_clone,
    "shallow clone": shallow_clone,
    "worktree": worktree,
    "hook": lambda repo: repo.env.update(GIT_DIR="/nowhere", GIT_INDEX_FILE="/nowhere"),
    "subfolder": subfolder,
    "no commit": no_commit,
    "name used twice": lambda repo: repo.run(
        "dvc", "exp", "run", "-f", "-n", "narrow", "-S", "eval_samples=7"
    ),
}  # fmt: skip


def moved(repo: Repo, _: ExitStack) -> None:
    """The store of a clone that was at another place when it was made."""
    home, old = repo.root, repo.root.with_name("old")
    repo.root = home.rename(old)
    repo.pipeline("log-all", ok=None)
    repo.root = old.rename(home)


def on_a_server(repo: Repo, stack: ExitStack) -> None:
    folder = repo.root.parent / "server"
    folder.mkdir()
    repo.env["MLFLOW_TRACKING_URI"], _ = stack.enter_context(mlflow_server(folder))


def unreachable(repo: Repo, stack: ExitStack) -> None:
    repo.env["MLFLOW_TRACKING_URI"] = stack.enter_context(refusing())


def named(uri: str) -> Callable[[Repo, ExitStack], None]:
    return lambda repo, _: repo.env.update(MLFLOW_TRACKING_URI=uri)


STORES: dict[str, Callable[[Repo, ExitStack], object]] = {
    "default": lambda *_: None,
    "relative": named("sqlite:///runs.db"),
    "server": on_a_server,
    "unreachable": unreachable,
    "moved": moved,
    "files": named("file:mlruns"),
    "folder": named("./mlruns"),
    "databricks": named("databricks"),
    "no database": lambda repo, _: (repo.root / "mlflow.db").write_text("not a database"),
}  # fmt: skip


def in_every_folder(repo: Repo, name: str, content: str = "note\n") -> None:
    for folder in [repo.root, *repo.root.glob("[!.]*/**/")]:
        if folder.is_dir() and not folder.is_symlink():
            (folder / name).write_text(content)


def linked(repo: Repo, name: str) -> None:
    """A folder on another disk."""
    there = repo.root.parent / "disk" / name
    there.parent.mkdir(exist_ok=True)
    if (repo.root / name).exists():
        (repo.root / name).rename(there)
    there.mkdir(exist_ok=True)
    (repo.root / name).symlink_to(there)


def broken_links(repo: Repo) -> None:
    for folder in ("", "data", "reports", "reports/samples", ".dvc/tmp/runs"):
        (repo.root / folder).mkdir(parents=True, exist_ok=True)
        (repo.root / folder / "link").symlink_to("nowhere")


def listening(repo: Repo) -> None:
    """A socket, as an editor or a debugger leaves it."""
    here = Path.cwd()
    os.chdir(repo.root / "reports")  # the address of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.chdir(here)


FILES: dict[str, Callable[[Repo], object]] = {
    "none": lambda _: None,
    "of macOS": lambda repo: in_every_folder(repo, ".DS_Store"),
    "notes": lambda repo: in_every_folder(repo, "notes.txt"),
    "broken links": broken_links,
    "linked artifacts": lambda repo: linked(repo, "mlartifacts"),
    "socket": listening,
    "linked data": lambda repo: linked(repo, "data"),
}  # fmt: skip

# The lengths of the lists have no common divisor, so the rows combine them in many ways.
ROWS = [
    (
        list(GIT)[i % len(GIT)],
        FOLDERS[i % len(FOLDERS)],
        list(STORES)[i * 4 % len(STORES)],
        list(FILES)[i * 3 % len(FILES)],
    )
    for i in range(40)
]


@pytest.fixture(scope="module")
def origin(repro_repo, tmp_path_factory) -> Repo:
    """After `dvc repro` and one experiment, which have no MLflow runs: each row logs them."""
    repo = repro_repo.copy(tmp_path_factory.mktemp("origin") / "repo")
    repo.run("dvc", "exp", "run", "-n", "narrow", "-S", "z_dim=2")
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "checkout", "-q")
    return repo


def pytest_generate_tests(metafunc):
    rows = ROWS if metafunc.config.getoption("surroundings") else ROWS[10::10]
    metafunc.parametrize("names", rows, ids=", ".join)


@pytest.fixture
def repo(origin, names, tmp_path) -> Iterator[Repo]:
    """A copy of `origin` in the surroundings of one row."""
    git, folder, store, files = names
    with ExitStack() as stack:
        repo = origin.copy(tmp_path / folder / "vae")
        STORES[store](repo, stack)
        GIT[git](repo)
        FILES[files](repo)
        yield repo


def beside(repo: Repo) -> set[Path]:
    """What is next to the project and in the folder above it."""
    return {
        path for folder in (repo.root.parent, repo.root.parents[1]) for path in folder.iterdir()
    }


@pytest.mark.slow
def test_commands_are_true_in_ordinary_surroundings(repo):
    before = beside(repo)
    compared, (status, logged), examined = (
        finished(repo, name) for name in ("compare", "log-all", "doctor")
    )
    assert beside(repo) == before, "a stray folder"
    if "Wrote reports/compare.html" in compared[1]:
        assert (repo.root / "reports" / "compare.html").exists()
    complete = re.findall(r"^log-all: (\d+) of \d+ are", logged, re.MULTILINE)
    assert (status == 0) is bool(complete)
    names = re.findall(r"^log-all: (\S+): (?:.* of )?MLflow run", logged, re.MULTILINE)
    if complete:
        assert len(names) == int(complete[0])
    if examined == (0, "doctor: no problems\n"):
        assert not re.search("^log-all: not in MLflow: ", logged, re.MULTILINE)
    if "narrow" in names:
        assert_whole(repo, repo.runs()["narrow"], repo.experiment("narrow"))
        reproduced = finished(repo, "reproduce", "narrow")
        assert (reproduced[0] == 0) is ("reproduce: identical" in reproduced[1])


def finished(repo: Repo, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a command, which has no traceback and is not empty."""
    done = subprocess.run(
        ["python", "-m", "pipeline", *arguments], cwd=repo.root, env=repo.environment(), text=True,
        errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(" ".join(arguments), done.returncode, done.stdout, sep="\n")
    assert "Traceback" not in done.stdout and done.stdout.strip()
    assert done.returncode in (0, 1, 2)
    return done.returncode, done.stdout
