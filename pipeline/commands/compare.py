"""Compare HEAD and DVC experiments: which is better, by how much, and is it more than chance.

Compares HEAD, the workspace if it has results of its own, and the experiments that are named (by
default all). Prints a table and writes reports/compare.html, one file for a browser.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.commands.comparison import configurations, page, tables
from pipeline.commands.comparison.links import links
from pipeline.commands.comparison.runs import Run, read_runs
from pipeline.errors import UserError
from pipeline.paths import COMPARISON
from pipeline.runtime.files import home, write_output
from pipeline.runtime.git import Experiment, experiments, head, workspace

HEAD = "HEAD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("names", metavar="EXP", nargs="*", help="an experiment or a git revision")
    parser.add_argument("--baseline", metavar="EXP", help="compare with it (default: HEAD)")


def main(arguments: argparse.Namespace) -> None:
    """Read the runs, compare them, print the table, and write the page."""
    root = home()
    chosen = choose(arguments.names, arguments.baseline, root)
    runs = read_runs(chosen, root)
    measured = [run for run in runs if run.metrics]
    comparison = configurations.compare(measured, choose_baseline(measured, arguments.baseline))
    linked, link_note = links(measured, root)
    remarks = {**tables.notes(comparison, runs), link_note: "MLflow"}
    commands = {name: command(entry) for name, entry in chosen.items()}
    html = page.render(comparison, root, notes=remarks, links=linked, commands=commands)
    write_output(root / COMPARISON, html.encode())
    lines = [f"note: {names}: {note}" for note, names in remarks.items()]
    lines += [*tables.caveat(comparison).splitlines(), tables.answer(comparison)]
    lines += [f"Wrote {COMPARISON}: open it in a browser"]
    print(tables.terminal(comparison), *map(tables.ascii_text, lines), sep="\n")


def choose(names: Sequence[str], baseline: str | None, root: Path) -> dict[str, Experiment]:
    """Return the runs to compare by unique names. Raises UserError about an unknown name."""
    available = by_name(experiments(root))
    own = workspace(root)
    available |= {"workspace": own} if own else {}
    wanted = dict.fromkeys([baseline or HEAD, HEAD, *(names or available)])
    return {name: available.get(name) or find_revision(name, available, root) for name in wanted}


def by_name(found: Sequence[Experiment]) -> dict[str, Experiment]:
    """Return experiments by name; those that share a name, on different baselines, with commits."""
    count = Counter(entry.name for entry in found)
    suffix = [f"@{entry.commit[:7]}" * (count[entry.name] > 1) for entry in found]
    return {entry.name + end: entry for entry, end in zip(found, suffix, strict=True)}


def find_revision(name: str, available: Mapping[str, Experiment], root: Path) -> Experiment:
    """Return the run of a git revision. Raises UserError if there is no such revision."""
    revision = head(root, name)
    if not revision:
        names = tables.ascii_text(", ".join([HEAD, *available]))
        message = f"no such experiment or git revision; there are {names}"
        raise UserError(tables.ascii_text(name), message)
    return revision


def choose_baseline(measured: Sequence[Run], wanted: str | None) -> str:
    """Return the name of the baseline, the first run. Raises UserError if nothing is to compare."""
    names = [run.name for run in measured]
    if wanted and wanted not in names:
        raise UserError(tables.ascii_text(wanted), "has no results; choose another --baseline")
    if len(names) < 2:
        advice = "`dvc repro` creates those of HEAD, `dvc exp run -S z_dim=2` those of another run"
        raise UserError("compare", f"fewer than two runs have results; {advice}")
    return names[0]


def command(entry: Experiment) -> str:
    """Return the command that restores the files of a run; "" for the workspace."""
    if entry.name:  # not by name, which DVC may have on another baseline, or use again
        return f"dvc exp apply {entry.commit[:10]}"
    in_git = entry.commit == entry.baseline
    return f"git checkout {entry.commit[:10]} && dvc checkout" if in_git else ""
