"""Compare HEAD and DVC experiments: which is better, by how much, and is it more than chance.

Without names: HEAD, the workspace if it has results of its own, and all experiments. With names:
HEAD and those. Prints a table and writes reports/compare.html, one file for a browser.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.comparison import configurations, page, tables
from pipeline.commands.comparison.choice import HEAD, available, find
from pipeline.commands.comparison.runs import Run, read_runs
from pipeline.errors import UserError
from pipeline.params import DEFAULTS
from pipeline.paths import COMPARISON, SWEEPS
from pipeline.runtime.files import home, sha256_file, write_output
from pipeline.runtime.git import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("names", metavar="EXP", nargs="*", help="an experiment or a git revision")
    parser.add_argument("--baseline", metavar="EXP", help="compare with it (default: HEAD)")


def main(arguments: argparse.Namespace) -> None:
    """Read the runs, compare them, print the table, and write the page."""
    root = home()
    runs = read_runs(choose(arguments.names, arguments.baseline, root), root)
    measured = [run for run in runs if run.metrics]
    comparison = configurations.compare(measured, choose_baseline(measured, arguments.baseline))
    linked, link_note = links(measured, root)
    remarks = {**tables.notes(comparison, runs), link_note: "MLflow"}
    sweeps = sorted(path.stem for path in (root / SWEEPS).glob("*.html"))
    html = page.render(comparison, root, runs=runs, notes=remarks, links=linked, sweeps=sweeps)
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


def links(runs: Sequence[Run], root: Path) -> tuple[dict[str, Any], str]:
    """Return (name, URL) in MLflow of each run, and a note about these links.

    A run is found by its parameters and the sha256 of its model file. A store that cannot be used
    costs the note.
    """
    # MLflow takes seconds to import.
    from pipeline.tracking.address import StoreError  # noqa: PLC0415
    from pipeline.tracking.client import existing_store  # noqa: PLC0415

    try:
        store = existing_store(root)
        tracked = store.runs() if store else []
    except StoreError as error:
        return {}, f"no links to runs: {error}"
    if not store or not tracked:
        return {}, "no runs yet; `python -m pipeline log-all` uploads them"
    known = {}
    for entry in sorted(tracked, key=lambda entry: entry.info.status == "FINISHED"):
        key = _key(entry.data.params, entry.data.tags.get("model.sha256", ""))
        known[key] = (entry.info.run_name, store.url(entry))
    cached = [run for run in runs if run.model.is_file()]
    found = {run.name: known.get(_key(run.params, sha256_file(run.model))) for run in cached}
    return found, "links to runs of the local store work while `make ui` runs"


def _key(params: Mapping[str, object], model_sha256: str) -> frozenset[object]:
    return frozenset(
        [model_sha256, *((key, str(value)) for key, value in {**DEFAULTS, **params}.items())]
    )
