"""Runs by the names that a user types: experiments, git revisions, `workspace`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.commands.comparison.runs import Run, read_runs
from pipeline.commands.comparison.tables import ascii_text
from pipeline.errors import UserError
from pipeline.runtime.git import Experiment, experiments, head, workspace

HEAD, WORKSPACE = "HEAD", "workspace"


def available(root: Path) -> dict[str, Experiment]:
    """Return all experiments, and the workspace if it has results of its own, by unique names."""
    own = workspace(root)
    return by_name(experiments(root)) | ({WORKSPACE: own} if own else {})


def by_name(found: Sequence[Experiment]) -> dict[str, Experiment]:
    """Return experiments by name; with its commit, if the name alone may mean something else.

    Experiments on different baselines may share a name.
    """
    count = Counter([*(entry.name for entry in found), HEAD, WORKSPACE])
    suffix = [f"@{entry.commit[:7]}" * (count[entry.name] > 1) for entry in found]
    return {entry.name + end: entry for entry, end in zip(found, suffix, strict=True)}


def find(name: str, among: Mapping[str, Experiment], root: Path) -> Experiment:
    """Return an experiment, or the run of a git revision. Raises UserError if it is neither."""
    found = among.get(name) or head(root, name)
    if not found:
        names = ascii_text(", ".join([HEAD, *among]))
        message = f"no such experiment or git revision; there are {names}"
        raise UserError(ascii_text(name), message)
    return found


def command(entry: Experiment) -> str:
    """Return the command that restores the files of a run; "" for the workspace."""
    if entry.name:  # not by name, which DVC may have on another baseline, or use again
        return f"dvc exp apply {entry.commit[:10]}"
    in_git = entry.commit == entry.baseline
    return f"git checkout {entry.commit[:10]} && dvc checkout" if in_git else ""


def read_run(name: str, root: Path) -> Run:
    """Return a run whose model is in DVC's cache. Raises UserError if it is not there.

    A workspace without results of its own has those of HEAD.
    """
    known = available(root)
    known.setdefault(WORKSPACE, find(HEAD, known, root))
    (run,) = read_runs({name: find(name, known, root)}, root)
    if not run.model.is_file():
        restore = command(run.experiment).removesuffix(" && dvc checkout")
        first = f"`{restore}`, then " if restore else ""
        message = f"its model is not in DVC's cache; run {first}`dvc pull` or `dvc repro`"
        raise UserError(ascii_text(name), message)
    return run
