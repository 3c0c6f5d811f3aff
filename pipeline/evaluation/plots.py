"""Figures with axes. The same numbers give the same PNG bytes.

A Figure is made without pyplot, which would look for a display and keep every figure.
"""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from pipeline.figures.grids import Shape, tile
from pipeline.runtime.files import write_output

# Colors of Okabe & Ito, which color-blind readers can distinguish, and four more.
COLORS = [
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9",
    "#E69F00", "#B8A800", "#000000", "#7B4FA3", "#8C564B",
]  # fmt: skip
matplotlib.rcdefaults()  # not the settings of a user, which would change bytes
matplotlib.rcParams |= {
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "image.cmap": "gray",
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.dpi": 130,
}
WIDTH = 7.0  # inches


def draw_rows(
    images: Tensor, shape: Shape, path: Path, *, title: str, x_label: str,
    rows: Sequence[str] = (), columns: Sequence[str] = (),
) -> None:  # fmt: skip
    """Images [R, C, D] in [0, 1] in rows and columns, each with its name or without."""
    grid = tile(images.flatten(0, 1).view(-1, *shape), columns=images.shape[1])
    figure = Figure(figsize=(WIDTH, WIDTH * grid.shape[0] / grid.shape[1] + 1.1))
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x_label, fontsize=8)
    axes.imshow(grid.numpy(), vmin=0, vmax=1, interpolation="nearest")
    for axis, names, side in ((axes.xaxis, columns, shape[1]), (axes.yaxis, rows, shape[0])):
        axis.set_ticks([(index + 0.5) * (side + 1) for index in range(len(names))], names)
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def draw_kl(kl: pd.DataFrame, path: Path) -> None:
    """The KL of each latent dimension (rank, kl, active), the largest first; inactive ones gray."""
    figure = Figure(figsize=(WIDTH, 3))
    axes = figure.subplots()
    axes.bar(kl["rank"], kl.kl, color=kl.active.map({1: "C0", 0: "0.6"}), width=0.8)
    axes.set_title(f"KL per latent dimension: {kl.active.sum()} of {len(kl)} active")
    axes.set(xlabel="latent dimension, by KL (gray: Var μ ≤ 0.01)", ylabel="nats per image")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _save(figure, path)


def draw_codes(mu: Tensor, labels: Tensor, path: Path) -> None:
    """The means μ [N, Z] of q(z|x), colored by label, in the plane that `project` chooses."""
    points, x_label, y_label = project(mu, labels)
    figure = Figure(figsize=(WIDTH, 5.5))
    axes = figure.subplots()
    axes.set(title=f"posterior means of {len(mu):,} test images", xlabel=x_label, ylabel=y_label)
    classes = labels.unique().tolist()
    for label in classes:
        x, y = points[labels == label].T.numpy()
        axes.plot(x, y, ".", markersize=2, alpha=0.5, label=label)
    if 1 < len(classes) <= 2 * len(COLORS):
        legend = axes.legend(title="label", markerscale=6, bbox_to_anchor=(1, 1), loc="upper left")
        for handle in legend.get_lines():
            handle.set_alpha(1)
    _save(figure, path)


def project(mu: Tensor, labels: Tensor) -> tuple[Tensor, str, str]:
    """Codes μ [N, Z] as points [N, 2], and the names of both axes.

    For Z > 2, the plane that separates the classes best. Principal components would show a Gaussian
    cloud for any code: the prior asks for one.
    """
    z_dim = mu.shape[1]
    if z_dim > 2:
        # There is no such plane if the posterior has collapsed, or with two classes.
        with suppress(IndexError, ValueError):
            discriminants = LinearDiscriminantAnalysis(n_components=2)
            points = discriminants.fit_transform(mu.double().numpy(), labels.numpy())
            return torch.from_numpy(points[:, [0, 1]]), "linear discriminant 1", "discriminant 2"
    points = torch.cat([mu, labels.unsqueeze(1)], dim=1)[:, :2]
    return points, "μ of dimension 0", "label" if z_dim == 1 else "μ of dimension 1"


def draw_bound(bound: pd.DataFrame, proposals: dict[str, str], path: Path) -> None:
    """The bound of −log p(x) over K (columns k, NAME, NAME_se) for each proposal, by its name."""
    figure = Figure(figsize=(8, 3.4))
    far, near = figure.subplots(1, 2)
    for name, text in proposals.items():
        style = {"label": text, "marker": "o", "markersize": 4, "capsize": 2}
        for axes in (far,) if name == "prior" else (far, near):
            axes.errorbar(bound.k, bound[name], bound[f"{name}_se"], **style)
    for axes, title in ((far, "upper bound of −log p(x) from K draws"), (near, "from q alone")):
        axes.set(title=title, xscale="log", xlabel="K, draws of z per image")
        axes.grid(alpha=0.3)
    far.set_ylabel("nats per image")
    far.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    # Levels 8 and 9 take five times as long for a file of the same size.
    figure.savefig(content, metadata={"Software": None}, pil_kwargs={"compress_level": 7})
    write_output(path, content.getvalue())
