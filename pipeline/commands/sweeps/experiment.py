"""One run of a sweep as a DVC experiment: executed, published, or fetched if it exists already.

A git remote has the name of an experiment only after DVC's remote has its files: a name there
means complete. (`dvc exp push` does it in the other order.)
"""

import io
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UNFIT, UserError
from pipeline.params import Params, check_params, parse_yaml
from pipeline.paths import CLASSIFIER, DATASET, DVC_LOCK, HISTORY, MODEL, PARAMS, PER_IMAGE
from pipeline.runtime.dvc import child, environment, not_cached, open_repo
from pipeline.runtime.git import git, git_bytes

DATA = (DATASET, CLASSIFIER)  # of all experiments
CACHED = (*DATA, MODEL, PER_IMAGE)
RESULTS = (":!dvc.lock", ":!reports", f":!{PARAMS}")


def trial_name(sweep: str, number: int) -> str:
    """The experiment of a trial. DVC's own names are unique on one machine only."""
    return f"{sweep}-{number:04}"


class StageError(UserError):
    """A stage of the experiment failed."""


class UnfitError(StageError):
    """The parameters cannot be trained with: the training diverged, or memory ran out."""


@dataclass(frozen=True)
class Clone:
    """A clone of the repository in which experiments of the commit `baseline` are run."""

    root: Path
    baseline: str
    remote: str  # of git; "" if git and DVC do not both have one: then nothing is shared

    def ref(self, name: str) -> str:
        """The git ref of an experiment."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{name}"

    def params(self, revision: str = "") -> Params:
        """The parameters of a commit, by default of the baseline."""
        content = self.file(revision or self.baseline, PARAMS)
        return check_params(parse_yaml(content, PARAMS.name), PARAMS.name)

    def file(self, revision: str, path: Path) -> str:
        """A text file of a commit."""
        return git("show", f"{revision}:./{path}", at=self.root)

    def has(self, name: str) -> bool:
        """Whether the experiment is here."""
        question = ("rev-parse", "--verify", "--quiet", self.ref(name))
        return bool(git(*question, at=self.root, optional=True))

    def obtain(self, name: str, params: Mapping[str, Any]) -> None:
        """Have the experiment here: fetched, or executed. Raises UnfitError or UserError."""
        if self.fetch_refs([name]) or self.has(name):
            return
        require_clean(self.root)
        output = execute(name, params, self.root)
        # DVC's exit status may be that of another one, which was left in its queue.
        if not self.has(name):
            raise failure(name, output)

    def published(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the names that the git remote has, with their commits."""
        if not self.remote:
            return {}
        listed = git("ls-remote", self.remote, "refs/exps/*", at=self.root).split()
        commits = dict(zip(listed[1::2], listed[::2], strict=True))
        return {name: commits[self.ref(name)] for name in names if self.ref(name) in commits}

    def fetch_refs(self, names: Iterable[str]) -> bool:
        """Bring those of the experiments here that the git remote has; whether there are any."""
        published = self.published(names)
        # By commit: git compares a name with every ref of the remote, minutes for 15,000 of each.
        refs = [f"+{commit}:{self.ref(name)}\n" for name, commit in published.items()]
        if refs:  # on stdin, because the length of a command line is limited
            fetch = ("fetch", "--quiet", "--stdin", self.remote)
            git_bytes(*fetch, at=self.root, stdin="".join(refs).encode())
        return bool(refs)

    def publish(self, name: str) -> None:
        """Push the files, then the name, if there are remotes. Raises UserError if one fails.

        If another worker has published it meanwhile, that is the experiment.
        """
        if self.remote and not self.fetch_refs([name]):
            # DVC passes over a file that is missing here.
            require_cached(CACHED, self.file(self.ref(name), DVC_LOCK), self.root)
            dvc("push", self.root, revs=[self.ref(name)], workspace=False)
            git("push", "--quiet", self.remote, f"{self.ref(name)}:{self.ref(name)}", at=self.root)

    def fetch(self, names: list[str]) -> int:
        """Bring experiments and their files here; return how many of them are here now."""
        self.fetch_refs(names)
        present = [self.ref(name) for name in names if self.has(name)]
        if self.remote and present:
            dvc("fetch", self.root, revs=present, workspace=False)
            for ref in present:
                require_cached(CACHED, self.file(ref, DVC_LOCK), self.root)
        return len(present)

    def check(self, name: str, params: Params) -> None:
        """Raise UserError if the experiment has other parameters or other code.

        It may be one of an earlier sweep, or something was edited while it was started.
        """
        changed = ("diff", "--name-only", self.baseline, self.ref(name), "--", ".", *RESULTS)
        different = git(*changed, at=self.root).split()
        if not different and self.params(self.ref(name)) != params:
            different = ["parameters"]
        if different:
            shared = f"-g {self.remote} " if self.published([name]) else ""
            advice = f"`dvc exp remove {shared}{name}`, then `sweep work` again"
            raise UserError(name, f"exists, with other {', '.join(different)}; {advice}")

    def value(self, name: str, metric: str) -> float:
        """The metric in the experiment's history, of the epoch whose weights the model has."""
        params = self.params(self.ref(name))
        history = pd.read_csv(io.StringIO(self.file(self.ref(name), HISTORY)), index_col="epoch")
        kept = history.index[-1]
        if params.patience:  # as `training.best_epoch` chooses
            kept = history.loc[params.warmup_epochs + 1 :, "val/neg_elbo"].idxmin()
        return float(history.loc[kept, metric])


def open_clone(root: Path, baseline: str) -> Clone:
    """The clone in `root`, with its remotes: origin or the first of git, and DVC's default."""
    names = git("remote", at=root).split()
    remote = "origin" if "origin" in names else next(iter(names), "")
    with open_repo(root) as repo:
        has_files = bool(repo.config["core"].get("remote"))
    return Clone(root, baseline, remote if has_files else "")


def require_clean(root: Path) -> None:
    """Raise UserError if tracked files differ from the commit: trials would compute with them.

    Under DVC's lock: while an experiment starts, DVC changes params.yaml for a moment.
    """
    with open_repo(root, _wait_for_lock=True) as repo, repo.lock:
        changed = git("status", "--porcelain", "--untracked-files=no", at=root)
    if changed:
        name = changed.split()[1]
        advice = "commit it, or `git stash` (a killed worker may leave this)"
        raise UserError(name, f"differs from the commit; {advice}")


def require_data(clone: Clone) -> None:
    """Have dataset and classifier in the cache. Raises UserError if they cannot be had.

    Another CPU would train another classifier.
    """
    if clone.remote:
        dvc("fetch", clone.root, targets=[path.as_posix() for path in DATA])
    require_cached(DATA, clone.file(clone.baseline, DVC_LOCK), clone.root)


def require_cached(paths: Iterable[Path], lock: str, root: Path) -> None:
    """Raise UserError about the first that is not in DVC's cache as the dvc.lock names it."""
    for path in not_cached(paths, lock, root):
        advice = "`dvc pull`, or `dvc push` where it was made, or `dvc repro` and commit"
        raise UserError(path, f"is not in DVC's cache; {advice}")


def execute(name: str, params: Mapping[str, Any], root: Path) -> str:
    """Run the experiment in a folder of its own; return what it has printed, also in a file."""
    settings = [f"--set-param={key}={value}" for key, value in params.items()]
    output = root / ".dvc" / "tmp" / "sweeps" / f"{name}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    # It waits while other jobs of this clone hold DVC's lock.
    command = child("dvc", "--wait-for-lock", "exp", "run", "--temp", "-n", name, *settings)
    env = environment() | {"DVC_EXP_AUTO_PUSH": "false"}  # it would push the name before the files
    with (
        output.open("wb") as file,
        subprocess.Popen(command, cwd=root, env=env, stdout=file, stderr=file) as run,
    ):
        try:
            run.wait()
        except BaseException:
            run.send_signal(signal.SIGINT)  # DVC restores the workspace, where it has changed it
            with suppress(subprocess.TimeoutExpired):
                run.wait(timeout=5)
            run.kill()
            raise
    return output.read_text(encoding="utf-8", errors="replace")


def dvc(action: str, root: Path, **options: Any) -> Any:
    """A method of DVC's Repo. Raises UserError in its own words."""
    with open_repo(root, f"dvc {action}", _wait_for_lock=True) as repo:
        return getattr(repo, action)(**options)


def failure(name: str, output: str) -> UserError:
    """The error that an experiment ended with: the last line of its stage, or of DVC."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    ended = re.search(r"exited with (-?\d+)", lines[-1])
    if ended is None:
        return UserError(name, lines[-1].removeprefix("ERROR: ").strip())
    status = int(ended[1])
    if status == -signal.SIGKILL:
        return UnfitError(name, "a stage was killed, as the kernel does when memory runs out")
    reason = [line for line in lines if not line.endswith(ended[0])][-1].strip()
    return (UnfitError if status == UNFIT else StageError)(name, reason)
