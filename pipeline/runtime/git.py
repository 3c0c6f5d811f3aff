"""git, and the commits in which DVC keeps experiments (refs/exps/<2>/<38 of the baseline>/<name>).

If git fails, every function raises UserError with git's own words. An empty answer is only what its
docstring names.
"""

import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import NoResultsError, UserError
from pipeline.runtime.dvc import dvc_errors

# Whatever the user has configured: files with the bytes of the commit, names in ASCII, and diffs
# that `git apply` accepts in every folder of the repository.
PINNED = "-c core.autocrlf=false -c core.eol=lf -c core.fsmonitor=false -c core.quotePath=true"
PINNED += " -c diff.relative=false -c user.name=workspace -c user.email=workspace"
DIFF = "diff --binary --no-ext-diff --no-textconv --unified=3 --no-color -O/dev/null"
DIFF += " --src-prefix=a/ --dst-prefix=b/ --submodule=short --ignore-submodules=none"
# What stages write is a function of the rest, and therefore no part of a diff.
INPUTS = ("--", ".", ":!dvc.lock", ":!reports")
# Set by git for hooks and aliases (`git rev-parse --local-env-vars`), or changing what a command
# does. GIT_CONFIG_COUNT is left: containers pass the user's configuration with it.
CLEARED = "ALTERNATE_OBJECT_DIRECTORIES ATTR_SOURCE COMMON_DIR CONFIG CONFIG_PARAMETERS DIFF_OPTS"
CLEARED += " DIR EXTERNAL_DIFF GLOB_PATHSPECS GRAFT_FILE ICASE_PATHSPECS IMPLICIT_WORK_TREE"
CLEARED += " INDEX_FILE INTERNAL_SUPER_PREFIX LITERAL_PATHSPECS NAMESPACE NOGLOB_PATHSPECS"
CLEARED += " NO_REPLACE_OBJECTS OBJECT_DIRECTORY PREFIX REPLACE_REF_BASE SHALLOW_FILE WORK_TREE"


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
        """Whether the code differs from the baseline, or there is none."""
        return bool(self.diff or self.untracked or not self.baseline)


def git(*arguments: str, at: Path = Path(), optional: bool = False) -> str:
    """Return the output of a git command in the folder `at`.

    optional: return "" if git exits with 1, its way to report that there is none.
    """
    return git_bytes(*arguments, at=at, optional=optional).decode(errors="replace")


def git_bytes(
    *arguments: str, at: Path, optional: bool = False, stdin: bytes = b"", index: str = ""
) -> bytes:
    """Like `git`, for input and output that need not be UTF-8. index: "" for the repository's."""
    cleared = {f"GIT_{name}" for name in CLEARED.split()}
    env = {name: value for name, value in os.environ.items() if name not in cleared}
    env |= {"GIT_INDEX_FILE": index} if index else {}
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
    raise UserError("git", words or f"{' '.join(arguments)} failed ({done.returncode})")


def here(folder: Path = Path()) -> Source:
    """Return the code in the working directory, by DVC's environment variables and git."""
    experiment = os.environ.get("DVC_EXP_NAME", "")
    # In an experiment's own folder, HEAD is a commit that exists nowhere else.
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or _commit("HEAD", folder)
    if not baseline:
        return Source(experiment, "", "")
    others = ("ls-files", "-z", "--full-name", "--others", "--exclude-standard")
    listed = git(*others, *INPUTS, at=folder)
    untracked = tuple(filter(None, listed.split("\0")))
    return Source(experiment, baseline, diff_from(baseline, at=folder), untracked)


def source_of(experiment: Experiment, root: Path) -> Source:
    """Return the code of an experiment."""
    diff = diff_from(experiment.baseline, experiment.commit, at=root)
    return Source(experiment.name, experiment.baseline, diff)


def diff_from(*commits: str, at: Path) -> str:
    """Return the diff between two commits, or between one and the working directory."""
    with tempfile.TemporaryDirectory() as scratch:
        index = _unmarked_index(at, Path(scratch))
        diff = git_bytes(*DIFF.split(), *commits, *INPUTS, at=at, index=index)
    return diff.decode(errors="surrogateescape")


def artifact(source: Source) -> bytes:
    """Return the diff as a file for `git apply`; b"" if there is none."""
    return source.diff.encode(errors="surrogateescape")


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
    seconds, _ = git("rev-list", "--max-count=1", "--timestamp", commit, "--", at=root).split()
    return Experiment("", commit, commit, int(seconds) * 1000)


def workspace(root: Path) -> Experiment | None:
    """Return the workspace as an experiment, in a commit without a ref.

    None if its dvc.lock is HEAD's.
    """
    last = head(root)
    if not last or not git(*DIFF.split(), "HEAD", "--", "dvc.lock", at=root):
        return None
    changed = head(root, git("stash", "create", at=root).strip())
    return replace(changed, baseline=last.commit) if changed else None


def blobs(names: Sequence[str], root: Path) -> Iterator[bytes]:
    """Return the contents of hashes or `COMMIT:./PATH`, by one git process; b"" for none."""
    stdin = "".join(f"{name}\n" for name in names).encode()
    output = io.BytesIO(git_bytes("cat-file", "--batch", at=root, stdin=stdin))
    for _ in names:
        *_, size = output.readline().split()
        if size.isdigit():  # otherwise "missing"
            yield output.read(int(size))
            output.readline()
        else:
            yield b""


def check_out(commit: str, cached: Iterable[Path], root: Path, folder: Path) -> None:
    """Write the files of a commit into `folder`, and the files `cached` that its dvc.lock names.

    Raises NoResultsError about a file that is in neither DVC's cache nor a remote.
    """
    # Imported only if needed: it takes 0.5 s.
    from dvc.api import DVCFileSystem  # noqa: PLC0415
    from dvc.config import NoRemoteError  # noqa: PLC0415

    _extract(commit, root, folder)
    prefix = _prefix(root)
    with dvc_errors():
        # Its paths begin at git's root; a project in a subfolder of that is a subrepo.
        files = DVCFileSystem(str(root), rev=commit, subrepos=True)
        for path in cached:
            (folder / path.parent).mkdir(parents=True, exist_ok=True)
            try:
                files.get_file(prefix + path.as_posix(), str(folder / path))
            except (FileNotFoundError, NoRemoteError) as error:
                advice = "`dvc pull` or `dvc repro`"
                raise NoResultsError(path, f"not on this machine; {advice}") from error


def clone(root: Path, commit: str, diff: bytes, folder: Path) -> None:
    """Make `folder` a repository with the files of `commit`, `diff` applied, and without results.

    DVC gets an empty cache there: from a configured one it would restore what is to be executed.
    """
    if not _commit(commit, root):
        raise UserError(commit[:10], "not a commit of this repository; run `git fetch`")
    _extract(commit, root, folder)
    git("init", "--quiet", at=folder)
    if diff:
        # Paths in a diff begin at git's root. A carriage return is not white space to be fixed.
        apply = ("apply", f"-p{1 + _prefix(root).count('/')}", "--whitespace=nowarn", "-")
        git_bytes(*apply, at=folder, stdin=diff)
    (folder / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(folder / "reports", ignore_errors=True)
    # config.local has precedence over all others; older versions of DVC read `local` before `dir`.
    config = folder / ".dvc" / "config.local"
    config.write_text("[cache]\n    dir = cache\n    local =\n", encoding="utf-8")


def _extract(commit: str, root: Path, folder: Path) -> None:
    """Write the files of a commit that are under `root`, but no links to elsewhere.

    `git archive` would leave out and convert what attributes of the user say.
    """
    listed = git_bytes("ls-tree", "-r", "-z", commit, at=root).split(b"\0")
    entries = [entry.partition(b"\t") for entry in listed if b" blob " in entry]
    hashes = [about.split()[2].decode() for about, _, _ in entries]
    for (about, _, name), content in zip(entries, blobs(hashes, root), strict=True):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if about.startswith(b"100"):
            path.write_bytes(content)
            path.chmod(0o755 if about.startswith(b"100755") else 0o644)
        elif (path.parent / os.fsdecode(content)).resolve().is_relative_to(folder.resolve()):
            path.symlink_to(os.fsdecode(content))


def _unmarked_index(root: Path, folder: Path) -> str:
    """Return an index in `folder` that hides no change of a file; "" if git's own does not.

    git takes a file for unchanged that `update-index --skip-worktree` or --assume-unchanged marks.
    """
    listed = git_bytes("ls-files", "-v", "-z", at=root)
    marked = re.findall(rb"(?:^|\0)[hsS] ([^\0]+)", listed)
    # A sparse checkout marks files that are absent.
    present = b"\0".join(name for name in marked if os.path.lexists(root / os.fsdecode(name)))
    if not present:
        return ""
    path = git("rev-parse", "--git-path", "index", at=root).rstrip("\n")
    index = str(shutil.copy(root / path, folder))
    for unmark in ("--no-skip-worktree", "--no-assume-unchanged"):
        git_bytes("update-index", unmark, "-z", "--stdin", at=root, stdin=present, index=index)
    return index


def _prefix(root: Path) -> str:
    """Return the path of the project below git's root, with a slash at the end; "" for none."""
    return git("rev-parse", "--show-prefix", at=root).strip()


def _commit(revision: str, root: Path) -> str:
    question = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return git(*question, at=root, optional=True).strip()
