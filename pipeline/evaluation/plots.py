"""Figures with axes. The same numbers give the same PNG bytes.

A Figure is made without pyplot, which would look for a display and keep every figure.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from pipeline.figures.grids import tile

DPI = 130
WIDTH = 7.0  # inches
# Colors of Okabe & Ito, which color-blind readers can distinguish.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#999999"
CLASSES = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#000000",
    "#7B4FA3", "#8C564B",
)  # fmt: skip


def draw_rows(
    rows: Tensor,
    image_shape: tuple[int, int],
    path: Path,
    *,
    labels: Sequence[str],
    ticks: Sequence[str],
    title: str,
    x_label: str,
) -> None:
    """Images [R, C, D] in [0, 1] as R rows with a label each, and a tick below each column."""
    num_rows, columns, _ = rows.shape
    height, width = image_shape
    grid = tile(rows.reshape(-1, height, width), columns)
    figure, axes = _figure(WIDTH, WIDTH * grid.shape[0] / grid.shape[1] + 1.1, title)
    axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([(column + 0.5) * (width + 1) for column in range(columns)], ticks)
    axes.set_yticks([(row + 0.5) * (height + 1) for row in range(num_rows)], labels)
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(x_label, fontsize=8)
    _save(figure, path)


def draw_kl(table: pd.DataFrame, path: Path) -> None:
    """The KL of each latent dimension (rank, kl, active), the largest first; inactive ones gray."""
    title = f"KL per latent dimension: {table.active.sum()} of {len(table)} active"
    figure, axes = _figure(WIDTH, 3, title)
    axes.bar(table["rank"], table.kl, color=table.active.map({1: BLUE, 0: GRAY}), width=0.8)
    axes.set_xlabel("latent dimension, by KL (gray: Var μ ≤ 0.01)")
    axes.set_ylabel("nats per image")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _save(figure, path)


def draw_codes(mu: Tensor, labels: Tensor, path: Path) -> None:
    """The means μ [N, Z] of q(z|x), colored by label, in the plane that `project` chooses."""
    points, x_label, y_label = project(mu, labels)
    figure, axes = _figure(WIDTH, 5.5, f"posterior means of {len(mu):,} test images")
    for label, color in zip(labels.unique().tolist(), cycle(CLASSES)):
        x, y = points[labels == label].T
        axes.scatter(x, y, s=3, alpha=0.5, linewidths=0, color=color, label=str(label))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    legend = axes.legend(
        title="label", markerscale=4, frameon=False, bbox_to_anchor=(1, 1), loc="upper left"
    )
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)
    _save(figure, path)


def project(mu: Tensor, labels: Tensor) -> tuple[Tensor, str, str]:
    """μ [N, Z] as points [N, 2], with the names of both axes.

    For Z > 2, the plane that separates the classes best. Principal components would show a Gaussian
    cloud for any code: the prior asks for one.
    """
    if mu.shape[1] == 1:
        return torch.cat([mu, labels.view(-1, 1)], dim=1), "μ", "label"
    first, second = mu.var(dim=0).argsort(descending=True, stable=True)[:2].tolist()
    if mu.shape[1] > 2:
        points = _discriminants(mu, labels)
        if points.shape[1] == 2:
            return points, "first linear discriminant of the labels", "second linear discriminant"
    else:
        first, second = 0, 1
    return mu[:, [first, second]], f"μ of dimension {first}", f"μ of dimension {second}"


def _discriminants(mu: Tensor, labels: Tensor) -> Tensor:
    """At most two linear discriminants [N, 0 … 2]; fewer if the posterior has collapsed."""
    model = LinearDiscriminantAnalysis(n_components=2)
    try:
        points = torch.from_numpy(model.fit_transform(mu.double().numpy(), labels.numpy()))
    except (IndexError, ValueError):  # μ is the same for all images, or two classes
        return mu[:, :0]
    # Make the largest coefficient of each axis positive: its sign is arbitrary.
    scalings = torch.from_numpy(model.scalings_[:, : points.shape[1]])
    largest = scalings.gather(0, scalings.abs().argmax(dim=0, keepdim=True))
    return points * largest.sign()


def draw_bound(curves: pd.DataFrame, names: dict[str, str], path: Path) -> None:
    """The bound of −log p(x) over K, by proposal (columns NAME, NAME_se); the last, prior, is far."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    far, near = figure.subplots(1, 2)
    for (name, text), color in zip(names.items(), (BLUE, ORANGE, GREEN), strict=True):
        for axes in (far,) if name == "prior" else (far, near):
            axes.errorbar(
                curves.k, curves[name], curves[f"{name}_se"], label=text,
                color=color, marker="o", markersize=4, capsize=2,
            )  # fmt: skip
    for axes, title in (
        (far, "upper bound of −log p(x) from K draws"),
        (near, "without the prior"),
    ):
        axes.set_xscale("log")
        axes.set_xlabel("K, draws of z per image")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    far.set_ylabel("nats per image")
    far.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    # Levels 8 and 9 take five times as long for a file of the same size.
    png = {"compress_level": 7}
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None}, pil_kwargs=png)
