"""The comparison as one HTML file that needs no network and no other file."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pipeline.commands.comparison import tables
from pipeline.commands.comparison.charts import CURVES, charts, styles
from pipeline.commands.comparison.configurations import Comparison
from pipeline.commands.comparison.links import Link
from pipeline.commands.comparison.quantities import QUANTITIES
from pipeline.commands.comparison.runs import read_blobs
from pipeline.paths import BOUND, FIGURES, GENERATED, KL_PER_DIMENSION, RECONSTRUCTED
from pipeline.runtime.git import git

SHOWN = 6  # configurations with curves and pictures
CHARTED = {BOUND.stem, KL_PER_DIMENSION.stem}  # figures that are charts here

Pictures = dict[str, dict[str, str]]


def render(
    comparison: Comparison,
    notes: Sequence[tuple[str, str]],
    links: Mapping[str, Link],
    commands: Mapping[str, str],
    root: Path,
) -> str:
    """Return the page. `links` and `commands` are by the name of the run."""
    best = comparison.labels[: SHOWN - 1]
    shown = list(dict.fromkeys([*best, comparison.baseline, *comparison.labels]))[:SHOWN]
    runs = [run for label in shown for run in comparison.members(label)]
    wanted = [(run.experiment.commit, curve.path) for run in runs for curve in CURVES]
    drawn = charts(comparison, shown, read_blobs(root, wanted))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        comparison=comparison, tables=tables, shown=shown, notes=notes, links=links,
        commands=commands, charts=drawn, pictures=pictures(comparison, shown, root),
        figures={chart.name: {"data": chart.data, "layout": chart.layout} for chart in drawn},
        quantities=QUANTITIES, styles=styles(comparison.labels), plotly=plotly(),
    )  # fmt: skip


def pictures(comparison: Comparison, shown: Sequence[str], root: Path) -> Pictures:
    """Return data URIs of the pictures of each configuration's first seed: title -> label -> URI."""
    commits = {label: comparison.members(label)[0].experiment.commit for label in shown}
    folder = f"{FIGURES.as_posix()}/"
    listed = [git("ls-tree", "--name-only", commit, folder, at=root) for commit in commits.values()]
    figures = sorted(set("".join(listed).splitlines()))
    paths = [GENERATED, RECONSTRUCTED, *map(Path, figures)]
    wanted = [(commit, path) for commit in commits.values() for path in paths]
    blobs = read_blobs(root, wanted)
    found: Pictures = {}
    for path in paths:
        for label, commit in commits.items():
            content = base64.b64encode(blobs.get((commit, path), b"")).decode()
            if content and path.stem not in CHARTED:
                title = path.stem.replace("_", " ").capitalize()
                found.setdefault(title, {})[label] = f"data:image/png;base64,{content}"
    return found


def plotly() -> Any:
    """Return plotly.js, compressed: 1.9 MB in place of 4.8."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
