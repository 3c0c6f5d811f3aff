"""`python -m pipeline.commands.compare [--baseline EXP] [EXP …]`: what experiments did, against one another.

Compares HEAD with the experiments that are named, by an experiment's name or any git revision, or with all of DVC's
experiments, and with the workspace where that has results of its own. Runs that differ in their seed alone are taken
together; differences to the baseline (HEAD, if it has results) are taken image by image. Prints a table, and writes a
page to look at.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from pipeline.commands.comparison.groups import compare
from pipeline.commands.comparison.page import render
from pipeline.commands.comparison.remarks import notes
from pipeline.commands.comparison.runs import Run, gather
from pipeline.commands.comparison.terminal import printable, table
from pipeline.commands.comparison.tracked import Tracker
from pipeline.commands.comparison.wording import answer, caveat
from pipeline.errors import InputError, run, writing
from pipeline.runtime.git import Experiment, experiments, head, text_at, workspace
from pipeline.runtime.files import home

PAGE = Path("reports/compare.html")
WORKSPACE = "workspace"


def main() -> None:
    """Gather, compare, print, write."""
    parser = argparse.ArgumentParser("python -m pipeline.commands.compare", description="Compare HEAD and DVC experiments.")
    parser.add_argument("--baseline", metavar="EXP", help="what the others are compared with (HEAD, if it has results)")
    parser.add_argument("names", metavar="EXP", nargs="*", help="an experiment or a git revision (all experiments)")
    arguments = parser.parse_args()
    root = home()
    chosen = choose(arguments.names, arguments.baseline, root)
    runs, tracking = gather_all(chosen, root)
    measured = [entry for entry in runs if entry.has_results]
    if len(measured) < 2:
        raise InputError(
            "compare: there is nothing to compare: " + ("one run has results" if measured else "no run has results")
            + "; `dvc repro` makes those of HEAD (commit them), `dvc exp run -S z_dim=2` another run"
        )  # fmt: skip
    baseline = next(
        (entry for entry in measured if entry.name == (arguments.baseline or "HEAD")),
        None if arguments.baseline else measured[0],
    )
    if baseline is None:
        raise InputError(f"compare: {printable(arguments.baseline)}: has no results to compare with")
    comparison = compare(measured, baseline.name)
    left_out = [(entry.name, note) for entry in runs if not entry.has_results for note in entry.notes]
    said = [*notes(comparison), *left_out]
    with writing(PAGE):
        (root / PAGE).parent.mkdir(exist_ok=True)
        (root / PAGE).write_text(render(comparison, said, tracking), encoding="utf-8")
    print("\n".join(table(comparison)))
    for name, note in said:
        print(printable(f"note: {name}: {note}"))
    for line in filter(None, (caveat(comparison), tracking, answer(comparison))):
        print(printable(f"compare: {line}"))
    print(f"compare: wrote {PAGE} (open it in a browser): charts, samples side by side, how to get each run back")


def choose(names: Sequence[str], baseline: str | None, root: Path) -> list[tuple[str, Experiment]]:
    """HEAD and what is named, or the workspace and all experiments: each once, under a name of its own.

    Raises InputError.
    """
    known = experiments(root)
    last = head(root)
    found = [("HEAD", last)] if last else []
    unsaved = workspace(root)
    wanted = [*names, *([baseline] if baseline else [])]
    if unsaved and (WORKSPACE in wanted or not (names or _left_by(unsaved, known, root))):
        found.append((WORKSPACE, unsaved))
    if names:
        found += [(name, find(name, known, root)) for name in dict.fromkeys(wanted) if name not in dict(found)]
        return found
    several = {entry.name for entry in known if [other.name for other in known].count(entry.name) > 1}
    found += [(f"{entry.name}@{entry.commit[:7]}" if entry.name in several else entry.name, entry) for entry in known]
    if baseline and baseline not in dict(found):
        found.append((baseline, find(baseline, known, root)))
    return found


def _left_by(unsaved: Experiment, known: Sequence[Experiment], root: Path) -> bool:
    """Whether the workspace has what `dvc exp run` or `dvc exp apply` has put there, and is no run of its own."""
    lock = text_at(unsaved.commit, "dvc.lock", root)
    return any(text_at(entry.commit, "dvc.lock", root) == lock for entry in known)


def find(name: str, known: Sequence[Experiment], root: Path) -> Experiment:
    """The experiment or the revision of that name. Raises InputError where there is none, or several."""
    having = [entry for entry in known if name in (entry.name, f"{entry.name}@{entry.commit[:7]}")]
    if len(having) > 1:
        each = ", ".join(f"{entry.name}@{entry.commit[:7]}" for entry in having)
        raise InputError(f"compare: {name}: is the name of {len(having)} experiments: say which ({each})")
    if having:
        return having[0]
    if revision := head(root, name):
        return next((entry for entry in known if entry.commit == revision.commit), revision)
    there = ", ".join(entry.name for entry in known) or "no experiments yet; `dvc exp run -S z_dim=2` makes one"
    raise InputError(
        f"compare: {printable(name)}: is no experiment and no git revision (there is HEAD, {printable(there)})"
    )


def gather_all(chosen: Sequence[tuple[str, Experiment]], root: Path) -> tuple[list[Run], str]:
    """Read every run; and what the links to MLflow want, or why there are none."""
    tracker = Tracker(root)
    with tqdm(chosen, unit="run", desc="compare", disable=None, leave=False) as progress:
        runs = [gather(name, entry, root, tracker) for name, entry in progress]
    links = "links to MLflow work while `make ui` runs" if tracker.is_local and any(r.tracked for r in runs) else ""
    return runs, tracker.note or links


if __name__ == "__main__":
    run(main)
