"""The charts of a comparison: the rate–distortion plane, a small one for each of the main metrics, and the curves."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import plotly.graph_objects as go

from pipeline.commands.comparison.curves import bound, digits, dimensions, training
from pipeline.commands.comparison.drawing import LABEL, SOFT, Chart, bars, blank, plain, short, spaced, style
from pipeline.commands.comparison.groups import Comparison, Group
from pipeline.commands.comparison.quantities import NATS, QUANTITIES, show, upper
from pipeline.commands.comparison.statistics import Summary

DOTS = ("nll", "neg_elbo", "nll_binarized", "fd_judge", "precision", "recall", "knn_accuracy", "mutual_information")
JUDGED = ("fd_judge", "precision", "recall", "density", "coverage")

Point = tuple[Group, Summary, Summary]  # with rate and distortion


class Box(NamedTuple):
    """The part of the plane that is shown, in nats."""

    left: float
    width: float
    bottom: float
    height: float


def charts(comparison: Comparison) -> list[Chart]:
    """Every chart for which there is something to draw."""
    wide = [plane, training, bound, dimensions, digits]
    return [*(chart for draw in wide if (chart := draw(comparison))), *dots(comparison)]


def plane(comparison: Comparison) -> Chart | None:
    """Rate and distortion, with the lines on which −ELBO, their sum, is the same."""
    points: list[Point] = [
        (group, rate, distortion)
        for group in comparison.groups
        if (rate := group.summary("kl")) and (distortion := group.summary("recon"))
    ]
    if not points:
        return None
    rates, distortions = [rate.mean for _, rate, _ in points], [distortion.mean for *_, distortion in points]
    # Neither axis is stretched so far beyond the other that a difference of nothing fills it.
    least = max(2.0, 0.4 * (max(rates) - min(rates)), 0.4 * (max(distortions) - min(distortions)))
    box = Box(*spaced(rates, least), *spaced(distortions, least))
    figure = blank("rate: KL, nats per image", "distortion: recon, nats per image", height=460)
    figure.update_xaxes(range=[box.left, box.left + box.width])
    figure.update_yaxes(range=[box.bottom, box.bottom + box.height])
    for line in iso_lines(box):
        figure.add_trace(line)
    for place, point in enumerate(points):
        _put(figure, comparison, point, box, named=not any(_crowded(point, other, box) for other in points[:place]))
    said = "; ".join(f"{group.label}: KL {rate.mean:.2f}, recon {recon.mean:.2f}" for group, rate, recon in points)
    return Chart(
        "plane", "Rate and distortion",
        "Along a dotted line −ELBO = KL + recon is the same: towards the lower left is better, along a line nats only"
        " move from one to the other. Small open marks are single seeds.",
        f"Rate–distortion plane, in nats per image. {said}.", figure,
    )  # fmt: skip


def iso_lines(box: Box) -> Iterator[go.Scatter]:
    """Lines y = c − x across the plane, each with its c where it comes in, at the top or on the left."""
    low, high = box.left + box.bottom, box.left + box.bottom + box.width + box.height
    step = next(d * 10.0**power for power in range(-3, 9) for d in (1, 2, 5) if high - low <= 9 * d * 10.0**power)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        c = number * step
        start, end = max(box.left, c - box.bottom - box.height), min(box.left + box.width, c - box.bottom)
        inside = start + 0.03 * box.width  # where what is written is not cut off
        if inside < end - 0.05 * box.width:
            yield go.Scatter(
                x=[start, inside, end], y=[c - start, c - inside, c - end], mode="lines+text", hoverinfo="skip",
                text=["", f"−ELBO {c:g}", ""], textposition="middle right",
                textfont={"color": SOFT, "size": 11}, line={"color": SOFT, "width": 1, "dash": "dot"},
            )  # fmt: skip


def _crowded(point: Point, other: Point, box: Box) -> bool:
    """Whether two names would be written over one another."""
    near = abs(point[1].mean - other[1].mean) < 0.35 * box.width
    return near and abs(point[2].mean - other[2].mean) < 0.045 * box.height


def _put(figure: go.Figure, comparison: Comparison, point: Point, box: Box, *, named: bool) -> None:
    """A configuration in the plane: its mean with error bars and, where it has room, its name; its seeds."""
    group, rate, distortion = point
    drawn = style(comparison, group)
    words = "KL %{x:.2f}, recon %{y:.2f}<extra></extra>"
    for run in group.runs if rate.seeds > 1 else []:
        if {"kl", "recon"} <= run.metrics.keys():
            figure.add_scatter(
                x=[run.metrics["kl"]], y=[run.metrics["recon"]], mode="markers", opacity=0.6, legendgroup=drawn.key,
                marker={"color": drawn.colour, "symbol": f"{drawn.mark}-open", "size": 7},
                hovertemplate=f"{plain(run.name)}, one seed: {words}",
            )  # fmt: skip
    figure.add_scatter(
        x=[rate.mean], y=[distortion.mean], error_x=bars([rate.spread]), error_y=bars([distortion.spread]),
        mode="markers+text" if named else "markers", text=[f"\u00a0\u00a0{short(group.label)}\u00a0\u00a0"],
        textposition="middle left" if rate.mean > box.left + box.width / 2 else "middle right",
        textfont={"color": drawn.colour}, marker={"color": drawn.colour, "symbol": drawn.mark, "size": 11},
        legendgroup=drawn.key, hovertemplate=f"{plain(group.label)}: {words}",
    )  # fmt: skip


def dots(comparison: Comparison) -> Iterator[Chart]:
    """A small chart for each of the main metrics: a point with its error bar for every configuration."""
    for name in DOTS:
        quantity = QUANTITIES[name]
        found = [(group, summary) for group in comparison.groups if (summary := group.summary(name))]
        if not found:
            continue
        figure = blank("nats per image" if quantity.unit == NATS else "", "", height=70 + 26 * len(found))
        for group, summary in found:
            drawn = style(comparison, group)
            figure.add_scatter(
                x=[summary.mean], y=[drawn.key], error_x=bars([summary.spread]), mode="markers", legendgroup=drawn.key,
                marker={"color": drawn.colour, "symbol": drawn.mark, "size": 10},
                hovertemplate=f"{plain(group.label)}: {show(summary.mean, quantity)}<extra></extra>",
            )  # fmt: skip
        keys = [style(comparison, group).key for group, _ in found]
        figure.update_yaxes(
            type="category", autorange="reversed", categoryarray=keys, tickvals=keys,
            ticktext=[_tick(group.label) for group, _ in found],
        )  # fmt: skip
        caption = f"{upper(quantity.meaning)}" + (f"; {quantity.wish}." if quantity.wish else ".")
        if (floor := _floor(comparison, name)) is not None:
            figure.add_vline(x=floor, line={"color": SOFT, "dash": "dot", "width": 1.5})
            # A line alone would not widen the axis.
            figure.add_scatter(x=[floor], y=keys[:1], mode="markers", marker={"opacity": 0}, hoverinfo="skip")
            caption += f" Dotted: {show(floor, quantity)}, what real training images get."
        said = "; ".join(f"{group.label}: {show(summary.mean, quantity)}" for group, summary in found)
        yield Chart(name, quantity.symbol, caption, f"{quantity.symbol}. {said}.", figure, wide=False)


def _tick(label: str) -> str:
    most = LABEL - 8
    return plain(label if len(label) <= most else f"{label[: most - 1]}…")


def _floor(comparison: Comparison, name: str) -> float | None:
    """What real images get from the baseline's judge; None where the metric has no such floor."""
    floor = comparison.baseline.runs[0].judge.get("floor", {}).get(name) if name in JUDGED else None
    return None if floor is None else float(floor)
