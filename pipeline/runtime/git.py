"""git, and the commits in which DVC keeps experiments (refs/exps/<2>/<38 of the baseline>/<name>).

If git fails, every function raises UserError with git's own words. An empty answer is only what its
docstring names.
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

from pipeline.errors import UserError

# Whatever the user has configured: output that can be parsed, and diffs that `git apply` accepts.
PINNED = "-c log.showSignature=false -c core.quotePath=true -c diff.noprefix=false"
PINNED += " -c diff.mnemonicPrefix=false -c diff.relative=false"
DIFF = "diff --binary --no-ext-diff --no-textconv --unified=3 --no-color"
# What stages write is a function of the rest, and therefore no part of a diff.
INPUTS = ("--", ".", ":!dvc.lock", ":!reports")
# A git hook sets these; they would override the folder in which git is to run.
OF_HOOKS = "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX GIT_COMMON_DIR GIT_OBJECT_DIRECTORY"


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment: its name, baseline commit, own commit, and when that was made (ms)."""

    name: str
    baseline: str
    commit: str
    made: int


@dataclass(frozen=True)
class Source:
    """The code of an execution: the commit `baseline` with `diff` applied to it."""

    experiment: str  # "" for `dvc repro`
    baseline: str  # "" if there is no commit
    diff: str  # of tracked files; bytes that are not UTF-8 are surrogates, as in file names
    untracked: tuple[str, ...] = ()

    @property
    def dirty(self) -> bool:
        """Whether the code differs from the baseline."""
        return bool(self.diff or self.untracked)


def git(*arguments: str, at: Path = Path(), optional: bool = False) -> str:
    """Return the output of a git command in the folder `at`.

    optional: return "" if git exits with 1, its way to report that there is none.
    """
    return git_bytes(*arguments, at=at, optional=optional).decode(errors="replace")


def git_bytes(*arguments: str, at: Path, optional: bool = False, stdin: bytes = b"") -> bytes:
    """Like `git`, for input and output that need not be UTF-8."""
    env = {name: value for name, value in os.environ.items() if name not in OF_HOOKS.split()}
    command = ["git", *PINNED.split(), *arguments]
    try:
        done = subprocess.run(
            command, cwd=at, env=env, input=stdin, capture_output=True, check=False
        )
    except OSError as error:
        raise UserError("git", f"cannot be run ({error.strerror})") from error
    if done.returncode == 0 or (optional and done.returncode == 1):
        return done.stdout
    words = " ".join(done.stderr.decode(errors="replace").split())
    raise UserError("git", words or f"{arguments[0]} failed ({done.returncode})")


def here(folder: Path = Path()) -> Source:
    """Return the code in the working directory, by DVC's environment variables and git."""
    experiment = os.environ.get("DVC_EXP_NAME", "")
    # In an experiment's own folder, HEAD is a commit that exists nowhere else.
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or _commit("HEAD", folder)
    if not baseline:
        return Source(experiment, "", "")
    listed = git("ls-files", "-z", "--others", "--exclude-standard", *INPUTS, at=folder)
    untracked = tuple(filter(None, listed.split("\0")))
    return Source(experiment, baseline, diff_from(baseline, at=folder), untracked)


def source_of(experiment: Experiment, root: Path) -> Source:
    """Return the code of an experiment."""
    diff = diff_from(experiment.baseline, experiment.commit, at=root)
    return Source(experiment.name, experiment.baseline, diff)


def diff_from(*commits: str, at: Path) -> str:
    """Return the diff between two commits, or between one and the working directory."""
    return git_bytes(*DIFF.split(), *commits, *INPUTS, at=at).decode(errors="surrogateescape")


def artifact(source: Source) -> bytes:
    """Return the diff as a file for `git apply`, untracked files named in comments."""
    names = (f"# not in git, and not in this diff: {name}\n" for name in source.untracked)
    return ("".join(names) + source.diff).encode(errors="surrogateescape")


def experiments(root: Path) -> list[Experiment]:
    """Return every DVC experiment of the repository, oldest first."""
    form = "--format=%(committerdate:unix) %(refname) %(objectname)"
    lines = git("for-each-ref", form, "refs/exps/", at=root)
    # Not refs/exps/exec/..., which belong to running experiments.
    pattern = r"^(\d+) refs/exps/(..)/(.{38})/(\S+) (\S+)$"
    found = []
    for seconds, start, rest, name, commit in re.findall(pattern, lines, re.MULTILINE):
        found.append(Experiment(name, start + rest, commit, int(seconds) * 1000))
    return sorted(found, key=lambda experiment: (experiment.made, experiment.name))


def head(root: Path, revision: str = "HEAD") -> Experiment | None:
    """Return a commit as an experiment without a name or a change; None if it does not exist."""
    commit = _commit(revision, root)
    if not commit:
        return None
    seconds = git("log", "-1", "--format=%ct", commit, "--", at=root)
    return Experiment("", commit, commit, int(seconds) * 1000)


def workspace(root: Path) -> Experiment | None:
    """Return the workspace as an experiment, in a commit without a ref.

    None if its dvc.lock is HEAD's.
    """
    last = head(root)
    if not last:
        return None
    identity = ("-c", "user.name=workspace", "-c", "user.email=workspace")
    changed = head(root, git(*identity, "stash", "create", at=root).strip() or "HEAD")
    locks = {text_at(entry.commit, "dvc.lock", root) for entry in (last, changed) if entry}
    return replace(changed, baseline=last.commit) if changed and len(locks) == 2 else None


def text_at(commit: str, path: str, root: Path) -> str:
    """Return the text of a file in a commit; "" if the commit has no such file."""
    listed = git("ls-tree", commit, "--", path, at=root)
    return git("cat-file", "blob", f"{commit}:{path}", at=root) if listed else ""


def check_out(commit: str, cached: Iterable[Path], root: Path, folder: Path) -> None:
    """Write the files of a commit into `folder`, and the files `cached` that its dvc.lock names.

    Raises UserError about a file that is in neither DVC's cache nor a remote.
    """
    from dvc.api import DVCFileSystem  # noqa: PLC0415  (imported only if needed: it takes 0.5 s)

    with tarfile.open(fileobj=io.BytesIO(git_bytes("archive", commit, at=root))) as archive:
        archive.extractall(folder, filter="data")
    files = DVCFileSystem(str(root), rev=commit)
    for path in cached:
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        try:
            files.get_file(path.as_posix(), str(folder / path))
        except Exception as error:  # of DVC, its remote, or the network
            words = " ".join(str(error).split())
            message = f"is in neither DVC's cache nor a remote ({words}); run `dvc repro`"
            raise UserError(path, message) from error


def clone(root: Path, commit: str, diff: bytes, folder: Path) -> None:
    """Clone the repository into `folder` at `commit` with `diff` applied, without results.

    DVC gets an empty cache there: from a configured one it would restore what is to be executed.
    """
    if not _commit(commit, root):
        raise UserError(commit[:10], "not a commit of this repository; run `git fetch`")
    git("clone", "--quiet", "--no-checkout", str(root.absolute()), str(folder.absolute()), at=root)
    git("checkout", "--quiet", "--detach", commit, at=folder)
    if diff:  # in which a carriage return is not white space to be fixed
        git_bytes("apply", "--whitespace=nowarn", "-", at=folder, stdin=diff)
    (folder / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(folder / "reports", ignore_errors=True)
    # config.local has precedence over all others; older versions of DVC read `local` before `dir`.
    config = folder / ".dvc" / "config.local"
    config.write_text("[cache]\n    dir = cache\n    local =\n", encoding="utf-8")


def _commit(revision: str, root: Path) -> str:
    question = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return git(*question, at=root, optional=True).strip()
