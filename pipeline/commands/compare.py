"""Compare HEAD and DVC experiments: which is better, by how much, and is it more than chance.

Compares HEAD, the workspace if it has results of its own, and the experiments that are named (by
default all). Prints a table and writes reports/compare.html, one file for a browser.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands.comparison import configurations, page, tables
from pipeline.commands.comparison.choice import HEAD, available, command, find
from pipeline.commands.comparison.links import links
from pipeline.commands.comparison.runs import Run, read_runs
from pipeline.errors import UserError
from pipeline.paths import COMPARISON
from pipeline.runtime.files import home, write_output
from pipeline.runtime.git import Experiment


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
    known = available(root)
    wanted = dict.fromkeys([baseline or HEAD, HEAD, *(names or known)])
    return {name: find(name, known, root) for name in wanted}


def choose_baseline(measured: Sequence[Run], wanted: str | None) -> str:
    """Return the name of the baseline, the first run. Raises UserError if nothing is to compare."""
    names = [run.name for run in measured]
    if wanted and wanted not in names:
        raise UserError(tables.ascii_text(wanted), "has no results; choose another --baseline")
    if len(names) < 2:
        advice = "`dvc repro` creates those of HEAD, `dvc exp run -S z_dim=2` those of another run"
        raise UserError("compare", f"fewer than two runs have results; {advice}")
    return names[0]
