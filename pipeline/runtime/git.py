"""The door to git and to DVC's experiments: where an execution stands, and its files once more.

Only what is documented is relied upon: git's commands, the refs under which DVC keeps experiments
(refs/exps/<2>/<38 of the baseline's sha>/<name>), DVC's file system over a revision.
"""

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError

# Without what stages write: a function of the rest, and therefore no part of what differs from a commit.
INPUTS = ("--", ".", ":!dvc.lock", ":!reports")
# One that `git apply` takes, whatever the person has configured, and that names files in ASCII.
DIFF = (
    "-c",
    "diff.noprefix=false",
    "-c",
    "diff.mnemonicPrefix=false",
    "-c",
    "core.quotePath=true",
    "diff",
    "--binary",
    "--no-ext-diff",
    "--no-textconv",
    "--unified=3",
    "--no-color",
)


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment: its name, the commit that it is a change to, its own commit, and when that was made (ms)."""

    name: str
    baseline: str
    commit: str
    made: int


@dataclass(frozen=True)
class Source:
    """Where in git an execution stands: a change to the commit `baseline`, in the DVC experiment of that name."""

    experiment: str  # "" for `dvc repro`
    baseline: str  # "" outside git
    diff: str  # of everything tracked that stages read; a byte that is not UTF-8 is a surrogate, as in a file's name
    untracked: tuple[str, ...] = ()

    @property
    def dirty(self) -> bool:
        """Whether the baseline alone does not say what was executed."""
        return bool(self.diff or self.untracked)


def here(folder: Path = Path()) -> Source:
    """Where the code in the working directory stands, as DVC's environment and git say."""
    # HEAD of an experiment's own checkout is a commit that nobody else has; its baseline is in the repository.
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or git("rev-parse", "--verify", "-q", "HEAD", at=folder).strip()
    if not baseline:
        return Source(os.environ.get("DVC_EXP_NAME", ""), "", "")
    untracked = git("ls-files", "-z", "--others", "--exclude-standard", *INPUTS, at=folder)
    return Source(
        experiment=os.environ.get("DVC_EXP_NAME", ""),
        baseline=baseline,
        diff=diff_from(baseline, at=folder),
        untracked=tuple(name for name in untracked.split("\0") if name),
    )


def source_of(experiment: Experiment, root: Path) -> Source:
    """Where an experiment that has been executed stands."""
    diff = diff_from(experiment.baseline, experiment.commit, at=root)
    return Source(experiment.name, experiment.baseline, diff)


def diff_from(*commits: str, at: Path) -> str:
    """What differs from one commit to another, or to the working directory. `artifact` gives its bytes back."""
    return _said(*DIFF, *commits, *INPUTS, at=at).decode(errors="surrogateescape")


def experiments(root: Path) -> list[Experiment]:
    """Every DVC experiment of the repository, in the order in which they were made."""
    found = []
    form = "%(refname) %(objectname) %(committerdate:unix)"
    for line in git("for-each-ref", f"--format={form}", "refs/exps/", at=root).splitlines():
        ref, commit, seconds = line.rsplit(" ", 2)
        if match := re.fullmatch(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/([^/]+)", ref):
            found.append(Experiment(match[3], match[1] + match[2], commit, int(seconds) * 1000))
    return sorted(found, key=lambda experiment: (experiment.made, experiment.name))


def head(root: Path, revision: str = "HEAD") -> Experiment | None:
    """HEAD as if it were an experiment without a name, a change of nothing; None where there is no such commit."""
    said = git("log", "-1", "--format=%H %ct", "--end-of-options", f"{revision}^{{commit}}", "--", at=root).split()
    return Experiment("", said[0], said[0], int(said[1]) * 1000) if said else None


def workspace(root: Path) -> Experiment | None:
    """What is in the workspace as if it were an experiment; None where its dvc.lock is HEAD's.

    Of everything tracked: in a commit that no ref names, which is all that `git stash create` makes.
    """
    commit = git("-c", "user.name=workspace", "-c", "user.email=workspace", "stash", "create", at=root).strip()
    last, made = head(root), head(root, commit) if commit else None
    if not last or not made or text_at(commit, "dvc.lock", root) == text_at("HEAD", "dvc.lock", root):
        return None
    return replace(made, baseline=last.commit)


def text_at(commit: str, path: str, root: Path) -> str:
    """The text of a file in a commit, "" where there is none."""
    return git("show", f"{commit}:{path}", at=root)


def check_out(commit: str, cached: Iterable[Path], root: Path, folder: Path) -> None:
    """Put the files of a commit into `folder`, and those that its dvc.lock names, out of DVC's cache or remote.

    Raises InputError where one of these is in neither.
    """
    unpack(commit, root, folder)
    for path in cached:
        fetch(commit, path, root, folder)


def unpack(commit: str, root: Path, folder: Path) -> None:
    """Put the files of a commit that are in git into `folder`."""
    archive = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def fetch(commit: str, path: Path, root: Path, folder: Path) -> None:
    """Put a file that the dvc.lock of a commit names into `folder`, out of DVC's cache or a remote.

    Raises InputError where it is in neither.
    """
    from dvc.api import DVCFileSystem  # noqa: PLC0415  (half a second that the stage has no use for)

    (folder / path.parent).mkdir(parents=True, exist_ok=True)
    try:
        files = DVCFileSystem(str(root), rev=commit)
        files.get_file(path.as_posix(), str(folder / path))
    except Exception as error:  # DVC's, its remote's, or the network's
        raise InputError(f"{path} is neither in DVC's cache nor in a remote; `dvc repro` makes it") from error


def clone(root: Path, commit: str, diff: bytes, folder: Path) -> None:
    """A clone of the repository in `folder`, at `commit` with `diff` applied and nothing executed yet.

    DVC has a cache of its own there, an empty one: in one that is configured for the project, the person or the
    machine it would find its run-cache, and restore what is to be executed.

    Raises InputError where the commit is not there, or the diff does not fit it.
    """
    if not git("cat-file", "-t", f"{commit}^{{commit}}", at=root):
        raise InputError(f"commit {commit[:10]} is not in this repository (`git fetch` brings what a colleague has)")
    git("clone", "-q", "--no-checkout", str(root), str(folder))
    git("checkout", "-q", "--detach", commit, at=folder)
    patch = folder / ".git" / "recorded.diff"
    patch.write_bytes(diff)
    apply = ["git", "apply", "--whitespace=nowarn", str(patch)]  # a carriage return is no whitespace to be fixed
    if diff and subprocess.run(apply, cwd=folder, capture_output=True, check=False).returncode:
        raise InputError(f"git.diff of the run does not fit commit {commit[:10]}")
    if not (folder / "dvc.yaml").exists():
        raise InputError(f"commit {commit[:10]} cannot be checked out")
    (folder / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(folder / "reports", ignore_errors=True)
    # The level before which all others give way; `local` is how old versions named a cache, and goes before `dir`.
    (folder / ".dvc" / "config.local").write_text("[cache]\n    dir = cache\n    local =\n", encoding="utf-8")


def git(*arguments: str, at: Path = Path()) -> str:
    """What git says, or nothing where it fails: outside a repository, without a commit."""
    return _said(*arguments, at=at).decode(errors="replace")


def _said(*arguments: str, at: Path) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=at, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def artifact(source: Source) -> bytes:
    """The diff as a file: what is not in it is named first, where `git apply` looks past it."""
    names = "".join(f"# not in git, and therefore not in this diff: {name}\n" for name in source.untracked)
    return (names + source.diff).encode(errors="surrogateescape")
