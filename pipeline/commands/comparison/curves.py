"""The charts of a comparison that lay the runs' tables over one another; None where no run has one."""

from collections.abc import Iterator, Sequence

import numpy as np
import plotly.graph_objects as go

from pipeline.commands.comparison.drawing import SOFT, Chart, blank, draw_line, plain, style
from pipeline.commands.comparison.files import Table
from pipeline.commands.comparison.groups import Comparison, Group
from pipeline.commands.comparison.runs import Run

TICKS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))  # of logarithmic scales


def training(comparison: Comparison) -> Chart | None:
    """−ELBO by epoch, of held-out images where there are any; a line for each seed."""
    figure, said, last = blank("epoch", "−ELBO, nats per image", height=400), [], 1.0
    for group, run, table in tables(comparison, "history", ("epoch",)):
        split = "val" if np.isfinite(table.get("val/neg_elbo", np.array([]))).any() else "train"
        values = table.get(f"{split}/neg_elbo")
        if values is None:
            continue
        name = run.name if split == "val" else f"{run.name}, training images"
        drawn, faint = style(comparison, group), run is not group.runs[0]
        draw_line(figure, drawn, name, table["epoch"], values, dash="solid" if split == "val" else "dash", faint=faint)
        said.append(f"{name}: {values[-1]:.2f} after epoch {table['epoch'][-1]:.0f}")
        last = max(last, table["epoch"][-1])
    _logarithmic(figure, last)
    caption = "Of held-out images; dashed: of training images, where none are held out. A line for each seed."
    return _chart(figure, said, name="training", title="Training", caption=caption, what="−ELBO by epoch")


def bound(comparison: Comparison) -> Chart | None:
    """The bound of −log p(x) over the number of draws."""
    figure, said, last = blank("draws of z an image, K", "bound of −log p(x), nats per image", height=400), [], 1.0
    for group, run, table in first_tables(comparison, "bound", ("k", "widened")):
        drawn = style(comparison, group)
        draw_line(figure, drawn, run.name, table["k"], table["widened"], errors=table.get("widened_se"))
        if "plain" in table:
            draw_line(figure, drawn, f"{run.name}, from q", table["k"], table["plain"], dash="dot", faint=True)
        said.append(f"{group.label}: {table['widened'][-1]:.2f} at K = {table['k'][-1]:.0f}")
        last = max(last, table["k"][-1])
    _logarithmic(figure, last)
    caption = (
        "More draws bring it down to −log p(x), and never below: where a line still falls, the truth is lower."
        " Solid: drawn from the widened q; dotted: from q itself."
    )
    return _chart(
        figure,
        said,
        name="bound",
        title="How far −log p(x) has converged",
        caption=caption,
        what="Bound of −log p(x) over K",
    )


def dimensions(comparison: Comparison) -> Chart | None:
    """KL of each latent dimension, the largest first."""
    figure, said = blank("latent dimensions, the largest KL first", "KL, nats per image", height=400), []
    for group, run, table in first_tables(comparison, "kl_per_dimension", ("rank", "kl")):
        draw_line(figure, style(comparison, group), run.name, table["rank"], table["kl"], marks=True)
        used = int((table["kl"] > 0.01).sum())
        said.append(f"{group.label}: {used} of {len(table['kl'])} above 0.01 nats, the largest {table['kl'][0]:.2f}")
    caption = "A dimension near zero is not used."
    return _chart(
        figure,
        said,
        name="dimensions",
        title="What each latent dimension carries",
        caption=caption,
        what="KL by latent dimension",
    )


def digits(comparison: Comparison) -> Chart | None:
    """Which digits are drawn, as the judge sees them."""
    figure = blank("digit", "share of the samples", height=400)
    said: list[str] = []
    for group, run, table in first_tables(comparison, "classes", ("digit", "samples", "test")):
        if not said:
            grey = {"symbol": "line-ew-open", "size": 30, "color": SOFT, "line": {"width": 2}}
            words = "test images: %{y:.1%}<extra></extra>"
            figure.add_scatter(x=table["digit"], y=table["test"], mode="markers", marker=grey, hovertemplate=words)
        drawn = style(comparison, group)
        figure.add_bar(
            x=table["digit"], y=table["samples"], legendgroup=drawn.key, marker={"color": drawn.colour},
            hovertemplate=f"{plain(run.name)}: %{{y:.1%}} are %{{x}}<extra></extra>",
        )  # fmt: skip
        said.append(f"{group.label}: " + ", ".join(f"{share:.0%}" for share in table["samples"]))
    figure.update_xaxes(dtick=1, showgrid=False)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    caption = "As the judge reads the samples; the grey lines are the shares in the test images."
    return _chart(
        figure, said, name="digits", title="Which digits are drawn", caption=caption, what="Shares of the digits 0 to 9"
    )


def tables(comparison: Comparison, name: str, needed: Sequence[str]) -> Iterator[tuple[Group, Run, Table]]:
    """A table of every run that has it with these columns."""
    for group in comparison.groups:
        for run in group.runs:
            table = run.tables.get(name, {})
            if set(needed) <= table.keys():
                yield group, run, table


def first_tables(comparison: Comparison, name: str, needed: Sequence[str]) -> Iterator[tuple[Group, Run, Table]]:
    """The same of the first seed that has it: one of a group is enough."""
    seen: list[Group] = []
    for group, run, table in tables(comparison, name, needed):
        if group not in seen:
            seen.append(group)
            yield group, run, table


def _logarithmic(figure: go.Figure, last: float) -> None:
    figure.update_xaxes(type="log", tickvals=[tick for tick in TICKS if tick <= last])


def _chart(
    figure: go.Figure, said: Sequence[str], *, name: str, title: str, caption: str, what: str
) -> Chart | None:  # fmt: skip
    return Chart(name, title, caption, f"{what}. {'; '.join(said)}.", figure) if said else None
