"""The comparison as one HTML page that needs nothing but itself: no network, no other file."""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pipeline.commands.comparison.charts import charts
from pipeline.commands.comparison.drawing import style
from pipeline.commands.comparison.groups import Comparison, Group
from pipeline.commands.comparison.quantities import QUANTITIES, upper
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.tables import metrics, paired, results, seeds
from pipeline.commands.comparison.wording import answer, caveat

# What each picture shows, the same for every run but for the model that it came from.
PICTURES = {
    "generated": (
        "Samples from the prior",
        "128 digits that the decoder makes of z ~ N(0, I), the same z in every run",
    ),
    "reconstructed": (
        "Reconstructions",
        "64 test images, each on the left of its reconstruction, the same in every run",
    ),
    "traversals": ("Traversals", "one latent dimension at a time is moved, the others stand still"),
    "interpolations": ("Interpolations", "ways from one test image to another, straight in latent space"),
    "posterior_means": ("Posterior means", "where the encoder puts the test images, a colour for each digit"),
    "manifold": ("Manifold", "what the decoder makes of a grid over the two latent dimensions"),
}


def render(comparison: Comparison, notes: Sequence[tuple[str, str]], tracking: str) -> str:
    """The page. `notes`: of whom, and what. `tracking` says what the links to MLflow want, or why there are none."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["data_uri"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    environment.filters["size"] = lambda png: struct.unpack(">II", png[16:24])  # of a PNG, in pixels
    environment.filters["upper_first"] = upper
    drawn = charts(comparison)
    return environment.get_template("page.html").render(
        comparison=comparison, notes=notes, answer=answer(comparison), caveat=caveat(comparison), tracking=tracking,
        results=results(comparison), paired=paired(comparison), seeds=seeds(comparison), metrics=metrics(comparison),
        charts=drawn, figures={chart.name: figure_of(chart.figure) for chart in drawn},
        pictures=list(pictures(comparison)), runs=list(runs(comparison)),
        glossary=[q for q in QUANTITIES.values() if any(group.summary(q.name) for group in comparison.groups)],
        style=lambda group: style(comparison, group), plotly=get_plotlyjs(),
    )  # fmt: skip


def figure_of(figure: Any) -> dict[str, Any]:
    """A figure as what plotly.js draws."""
    drawn: dict[str, Any] = json.loads(figure.to_json())
    return drawn


def pictures(comparison: Comparison) -> Iterator[tuple[str, str, str, list[tuple[Group, Run, bytes]]]]:
    """Name, title and words of each kind of picture, and one of every group that has it: its first seed's."""
    for name, (heading, words) in PICTURES.items():
        having = [
            next(((group, run, run.pictures[name]) for run in group.runs if name in run.pictures), None)
            for group in comparison.groups
        ]
        if found := [entry for entry in having if entry]:
            yield name, heading, words, found


def runs(comparison: Comparison) -> Iterator[tuple[Group, Run]]:
    """Every run, with its group."""
    for group in comparison.groups:
        for run in (*group.runs, *group.repeats):
            yield group, run
