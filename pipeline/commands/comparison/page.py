"""The comparison as one HTML file that needs no network and no other file."""

import base64
import gzip
from collections.abc import Mapping
from itertools import product
from operator import attrgetter
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pipeline.commands.comparison import tables
from pipeline.commands.comparison.charts import CURVES, charts, styles
from pipeline.commands.comparison.choice import command
from pipeline.commands.comparison.configurations import Comparison
from pipeline.commands.comparison.quantities import QUANTITIES
from pipeline.commands.comparison.runs import read_blobs
from pipeline.paths import BOUND, FIGURES, GENERATED, KL_PER_DIMENSION, RECONSTRUCTED
from pipeline.runtime.git import git

SHOWN = 6  # configurations with curves and pictures
CHARTED = {f"{FIGURES.as_posix()}/{path.stem}.png" for path in (BOUND, KL_PER_DIMENSION)}


def render(comparison: Comparison, root: Path, **context: object) -> str:
    """Return the page. `context`: all runs, notes, links by the name of the run, sweeps."""
    best = comparison.labels[: SHOWN - 1]
    shown = list(dict.fromkeys([*best, comparison.baseline, *comparison.labels]))[:SHOWN]
    drawn = comparison.counted[comparison.counted["label"].isin(shown)]
    commits = drawn["run"].map(attrgetter("experiment.commit"))
    reports = read_blobs(root, commits, [curve.path for curve in CURVES])
    first = commits.groupby(drawn["label"]).first()[shown]
    loader = PackageLoader(__package__, ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    plotly = gzip.compress(get_plotlyjs().encode(), mtime=0)  # 1.4 MB in place of 4.8
    context |= {"comparison": comparison, "shown": shown, "styles": styles(comparison.labels)}
    context |= {"charts": charts(comparison, shown, reports), "quantities": QUANTITIES}
    context |= {"pictures": pictures(first.to_dict(), root), "tables": tables}
    context |= {"plotly": base64.b64encode(plotly).decode(), "command": command}
    return environment.get_template("page.html").render(context)


def pictures(commits: Mapping[str, str], root: Path) -> dict[str, dict[str, str]]:
    """Return the pictures in the commit of each label: title -> label -> data URI."""
    names = ("ls-tree", "-r", "--name-only")
    listed = (git(*names, commit, FIGURES.as_posix(), at=root) for commit in commits.values())
    figures = sorted({*"".join(listed).splitlines()} - CHARTED)
    paths = [GENERATED, RECONSTRUCTED, *map(Path, figures)]
    contents = read_blobs(root, commits.values(), paths)
    found: dict[str, dict[str, str]] = {}
    for path, (label, commit) in product(paths, commits.items()):
        if content := contents.get((commit, path)):
            title = path.stem.replace("_", " ").capitalize()
            uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            found.setdefault(title, {})[label] = uri
    return found
