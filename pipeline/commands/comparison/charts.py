"""The charts of the page, as Plotly's JSON. The page adds colors of text and grid, and a legend."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.commands.comparison.configurations import Comparison
from pipeline.commands.comparison.quantities import quantity
from pipeline.commands.comparison.runs import Blobs
from pipeline.paths import BOUND, HISTORY, KL_PER_DIMENSION

# After Okabe and Ito: distinguishable with every kind of color vision, on black and on white.
COLORS = ("#1f7fc4", "#d55e00", "#009e73", "#c9669b", "#d18f00", "#7c68c8", "#7f7f7f")
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "hexagon")
GLYPHS = ("●", "■", "◆", "▲", "✚", "▼", "★", "⬢")  # the same marks in text
DOTS = ("nll", "neg_elbo", "nll_binarized", "frechet_distance", "knn_accuracy", "active_units")


class Chart(NamedTuple):
    """One chart; `wide` is for curves."""

    name: str
    title: str
    caption: str
    height: int
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    wide: bool = True


class Curve(NamedTuple):
    """A column of a report over another; `y`: the columns to draw, the first that has values."""

    path: Path
    x: str
    y: tuple[str, ...]
    title: str
    caption: str
    scale: str = "log"


CURVES = (
    Curve(HISTORY, "epoch", ("val/neg_elbo", "train/neg_elbo"), "Training: −ELBO by epoch",
          "Validation images; dashed: training images, if none are held out. One line per seed."),
    Curve(BOUND, "k", ("widened",), "Bound of −log p(x) by samples per image",
          "If a line still falls at its end, −log p(x) is lower than the estimate."),
    Curve(KL_PER_DIMENSION, "rank", ("kl",), "KL of each latent dimension, largest first",
          "A dimension near zero is not used.", "linear"),
)  # fmt: skip


def styles(labels: Sequence[str]) -> pd.DataFrame:
    """Return how each configuration is drawn everywhere: color, mark, glyph, and a key."""
    looks = {"color": COLORS, "mark": MARKS, "glyph": GLYPHS}
    table = pd.DataFrame({name: np.resize(look, len(labels)) for name, look in looks.items()})
    table["key"] = "g" + table.index.astype(str)
    return table.set_index(pd.Index(labels))


def charts(comparison: Comparison, shown: Sequence[str], blobs: Blobs) -> list[Chart]:
    """Return every chart that has data; `blobs`: reports of the configurations in `shown`."""
    curves = [overlay(curve, comparison, shown, blobs) for curve in CURVES]
    drawn = [plane(comparison), *curves, *(dots(comparison, name) for name in DOTS)]
    return [chart for chart in drawn if chart.data]


def plane(comparison: Comparison) -> Chart:
    """Rate and distortion: their sum is −ELBO."""
    points = comparison.mean.reindex(columns=["kl", "recon"]).dropna()
    data = [marker(comparison, label, [x], [y]) for label, x, y in points.itertuples()]
    layout = axes("KL, nats per image", "recon, nats per image")
    caption = "−ELBO = KL + recon: it is the same along a falling diagonal; lower left is better."
    return Chart("plane", "Rate and distortion", caption, 440, data, layout)


def overlay(curve: Curve, comparison: Comparison, shown: Sequence[str], blobs: Blobs) -> Chart:
    """One report of all shown runs in one chart."""
    data = []
    counted = comparison.counted.set_index("label").loc[list(shown)]
    for label, run in counted["run"].items():
        table = read_table(curve, blobs.get((run.experiment.commit, curve.path), b""))
        for name in table.columns[1:]:
            trace = marker(comparison, label, table[curve.x].tolist(), table[name].tolist())
            trace["line"] = {"dash": "solid" if name == curve.y[0] else "dash"}
            trace["marker"]["size"] = 4  # a single epoch is no line
            data.append(trace | {"name": plain(run.name), "mode": "lines+markers"})
    layout = axes(curve.x, "")
    layout["xaxis"]["type"] = curve.scale
    return Chart(curve.path.stem, curve.title, curve.caption, 380, data, layout)


def read_table(curve: Curve, content: bytes) -> pd.DataFrame:
    """Return x and the first y that has values; no columns if the report has none."""
    try:
        table = pd.read_csv(io.BytesIO(content)).dropna(axis="columns", how="all").round(4)
    except ValueError:
        return pd.DataFrame()
    return table[[name for name in (curve.x, *curve.y) if name in table][:2]]


def dots(comparison: Comparison, name: str) -> Chart:
    """One point with its error bar per configuration."""
    data = []
    for label, mean in comparison.mean.reindex(columns=[name])[name].dropna().items():
        point = marker(comparison, label, [mean], [plain(str(label))[:24]])
        array = comparison.spread.loc[label, [name]].fillna(0).tolist()
        data.append(point | {"error_x": {"type": "data", "array": array, "width": 4}})
    layout = axes("", "")
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    symbol, *_, meaning = quantity(name)
    return Chart(name, symbol, meaning, 70 + 24 * len(data), data, layout, wide=False)


def marker(comparison: Comparison, label: Any, x: list[Any], y: list[Any]) -> dict[str, Any]:
    """Return points in the style of a configuration."""
    look = styles(comparison.labels).loc[label]
    return {
        "type": "scatter", "mode": "markers", "x": x, "y": y, "name": plain(label),
        "legendgroup": look.key, "marker": {"color": look.color, "symbol": look.mark, "size": 9},
        "hovertemplate": "%{fullData.name}: (%{x:.5g}, %{y:.5g})<extra></extra>",
    }  # fmt: skip


def axes(x: str, y: str) -> dict[str, Any]:
    """Return the titles of the axes; the page adds the rest of the layout."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def plain(text: str) -> str:
    """Return text that Plotly, which reads some HTML and %{...}, shows unchanged."""
    return escape(text, quote=False).replace("%{", "% {")
