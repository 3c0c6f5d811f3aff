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

from pipeline.figures.grids import Shape, tile

DPI = 130
WIDTH = 7.0  # inches
# Colors of Okabe & Ito, which color-blind readers can distinguish, and four more.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#999999"
CLASSES = (
    BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", ORANGE, "#B8A800", "#000000", "#7B4FA3", "#8C564B"
)  # fmt: skip


def draw_rows(
    images: Tensor, shape: Shape, path: Path, *, title: str, x_label: str,
    rows: Sequence[str] = (), columns: Sequence[str] = (),
) -> None:  # fmt: skip
    """Images [R, C, D] in [0, 1] in rows and columns, each with its name or without."""
    num_rows, num_columns, _ = images.shape
    grid = tile(images.reshape(-1, *shape), num_columns)
    figure, axes = _figure(WIDTH, WIDTH * grid.shape[0] / grid.shape[1] + 1.1, title)
    axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    pitch_y, pitch_x = (side + 1 for side in shape)
    axes.set_xticks([(i + 0.5) * pitch_x for i in range(num_columns)][: len(columns)], columns)
    axes.set_yticks([(i + 0.5) * pitch_y for i in range(num_rows)][: len(rows)], rows)
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(x_label, fontsize=8)
    _save(figure, path)


def draw_kl(kl: pd.DataFrame, path: Path) -> None:
    """The KL of each latent dimension (rank, kl, active), the largest first; inactive ones gray."""
    title = f"KL per latent dimension: {kl.active.sum()} of {len(kl)} active"
    figure, axes = _figure(WIDTH, 3, title)
    axes.bar(kl["rank"], kl.kl, color=kl.active.map({1: BLUE, 0: GRAY}), width=0.8)
    axes.set_xlabel("latent dimension, by KL (gray: Var μ ≤ 0.01)")
    axes.set_ylabel("nats per image")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _save(figure, path)


def draw_codes(mu: Tensor, labels: Tensor, path: Path) -> None:
    """The means μ [N, Z] of q(z|x), colored by label, in the plane that `project` chooses."""
    points, x_label, y_label = project(mu, labels)
    figure, axes = _figure(WIDTH, 5.5, f"posterior means of {len(mu):,} test images")
    for label, color in zip(labels.unique().tolist(), cycle(CLASSES), strict=False):
        axes.plot(*points[labels == label].T, ".", ms=2, alpha=0.5, color=color, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    legend = axes.legend(title="label", markerscale=6, frameon=False, bbox_to_anchor=(1, 1))
    for handle in legend.get_lines():
        handle.set_alpha(1)
    _save(figure, path)


def project(mu: Tensor, labels: Tensor) -> tuple[Tensor, str, str]:
    """Codes μ [N, Z] as points [N, 2], and the names of both axes.

    For Z > 2, the plane that separates the classes best, if there is one. Principal components
    would show a Gaussian cloud for any code: the prior asks for one.
    """
    if mu.shape[1] == 1:
        return torch.cat([mu, labels.unsqueeze(1)], dim=1), "μ", "label"
    if mu.shape[1] > 2:
        model = LinearDiscriminantAnalysis(n_components=2)
        try:
            points = torch.from_numpy(model.fit_transform(mu.double().numpy(), labels.numpy()))
            # The sign of an axis is arbitrary: its largest coefficient becomes positive.
            scalings = torch.from_numpy(model.scalings_[:, :2])
            signs = scalings.gather(0, scalings.abs().argmax(dim=0, keepdim=True)).sign()
            return (
                points[:, [0, 1]] * signs,
                "first linear discriminant",
                "second linear discriminant",
            )
        except (IndexError, ValueError):
            pass  # a collapsed posterior, or fewer than three classes: no such plane
    first, second = mu.var(dim=0).argsort(descending=True, stable=True)[:2].sort().values.tolist()
    return mu[:, [first, second]], f"μ of dimension {first}", f"μ of dimension {second}"


def draw_bound(bound: pd.DataFrame, proposals: dict[str, str], path: Path) -> None:
    """The bound of −log p(x) over K (columns k, NAME, NAME_se) for each proposal, by its name."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    far, near = figure.subplots(1, 2)
    style = {"marker": "o", "markersize": 4, "capsize": 2}
    for (name, text), color in zip(proposals.items(), (BLUE, ORANGE, GREEN), strict=True):
        for axes in (far,) if name == "prior" else (far, near):
            values, errors = bound[name], bound[f"{name}_se"]
            axes.errorbar(bound.k, values, errors, label=text, color=color, **style)
    for axes, title in ((far, "upper bound of −log p(x) from K draws"), (near, "from q alone")):
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_xlabel("K, draws of z per image")
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
