"""How a configuration is drawn, the same in every chart, and what the charts are made with.

Colours of text and grid are the page's (see page.html), which knows whether it is dark, or on paper; the legend is the
page's too, one for all charts.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from pipeline.commands.comparison.groups import Comparison, Group
from pipeline.commands.comparison.statistics import Array

# After Okabe and Ito, told apart with every kind of colour vision; without their yellow, and no darker or lighter than
# can be seen on black and on white. Marks change at another pace: 7 × 8 configurations differ in one or the other.
COLOURS = ("#1f7fc4", "#d55e00", "#009e73", "#c9669b", "#d18f00", "#7c68c8", "#7f7f7f")
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "hexagon")
GLYPHS = ("●", "■", "◆", "▲", "✚", "▼", "★", "⬢")  # the same in text
SOFT = "#8a8a8a"  # of what is no configuration
LABEL = 26  # letters of a label that have room


class Chart(NamedTuple):
    """A figure, what it shows, and what a person reads who does not see it."""

    name: str
    title: str
    caption: str
    alternative: str
    figure: go.Figure
    wide: bool = True


class Style(NamedTuple):
    """How one configuration is drawn; the page hides and shows by `key` what is drawn of it."""

    key: str
    colour: str
    mark: str
    glyph: str


def style(comparison: Comparison, group: Group) -> Style:
    """Colour and mark of a group, by its place."""
    place = list(comparison.groups).index(group)
    mark = place % len(MARKS)
    return Style(f"g{place}", COLOURS[place % len(COLOURS)], MARKS[mark], GLYPHS[mark])


def blank(x: str, y: str, height: int) -> go.Figure:
    """A figure with nothing in it, its axes named."""
    figure = go.Figure()
    figure.update_layout(
        template=None, height=height, margin={"l": 8, "r": 12, "t": 12, "b": 8}, showlegend=False, hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13}, dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    # A finger that moves over a chart scrolls the page.
    axis = {"automargin": True, "zeroline": False, "showgrid": True, "fixedrange": True}
    figure.update_xaxes(title={"text": x, "standoff": 8}, **axis)
    figure.update_yaxes(title={"text": y, "standoff": 8}, **axis)
    return figure


def draw_line(
    figure: go.Figure, drawn: Style, name: str, x: Array, y: Array, *,
    errors: Array | None = None, dash: str = "solid", faint: bool = False, marks: bool = False,
) -> None:  # fmt: skip
    """A line in the colour of its configuration; few points are marked."""
    figure.add_scatter(
        x=x, y=y, error_y=bars(errors), name=plain(name), legendgroup=drawn.key, opacity=0.55 if faint else 1,
        mode="lines+markers" if marks or len(x) < 8 else "lines", marker={"symbol": drawn.mark, "size": 6},
        line={"color": drawn.colour, "width": 2, "dash": dash},
        hovertemplate=f"{plain(name)}: %{{y:.4g}} at %{{x}}<extra></extra>",
    )  # fmt: skip


def bars(errors: Iterable[float | None] | None) -> dict[str, Any] | None:
    """Error bars, where every point has one."""
    known = [error for error in errors if error is not None] if errors is not None else []
    return {"type": "data", "array": known, "thickness": 1.5, "width": 4} if known else None


def plain(text: str) -> str:
    """Text that plotly, which reads some HTML, shows as it is."""
    return html.escape(text, quote=False).replace("%{", "% {")


def short(label: str) -> str:
    """As much of a label as has room, for plotly."""
    return plain(label if len(label) <= LABEL else f"{label[: LABEL - 1]}…")


def spaced(values: Sequence[float], least: float) -> tuple[float, float]:
    """The beginning and the length of an axis with room around the values, `least` long."""
    length = max(1.4 * (max(values) - min(values)), least)
    return (min(values) + max(values) - length) / 2, length
