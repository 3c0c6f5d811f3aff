"""Drawings of what was measured, with axes and words. The same numbers give the same PNG bytes.

A figure is made without pyplot: that would look for a screen and keep every figure.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

DPI = 130
# Okabe & Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
DIGITS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#000000", "#7B4FA3", "#8C564B")


def draw_rows(
    images: Tensor, path: Path, *, labels: Sequence[str], ticks: Sequence[str], title: str, x_label: str
) -> None:
    """Images [R, C, D] in [0, 1] as R rows with a label each, and a tick under each of the C columns ("" for none)."""
    rows, columns, pixels = images.shape
    side, pitch = math.isqrt(pixels), math.isqrt(pixels) + 2
    canvas = torch.ones(rows * pitch - 2, columns * pitch - 2)
    for row in range(rows):
        for column in range(columns):
            top, left = row * pitch, column * pitch
            canvas[top : top + side, left : left + side] = images[row, column].view(side, side)
    width = 7.0
    figure, axes = _figure(width, width * rows / columns + 1.1, title)
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([column * pitch + side / 2 for column in range(columns)], ticks)
    axes.set_yticks([row * pitch + side / 2 for row in range(rows)], labels)
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(x_label, fontsize=8)
    _save(figure, path)


def draw_kl(kl: Tensor, active: Tensor, path: Path) -> None:
    """The KL of each latent dimension, [Z] in nats, the largest first; those that are not active are grey."""
    order = kl.argsort(descending=True)
    figure, axes = _figure(7, 3, f"KL per latent dimension: {int(active.sum())} of {len(kl)} active")
    colours = [BLUE if used else GREY for used in active[order].tolist()]
    axes.bar(range(1, len(kl) + 1), kl[order].tolist(), color=colours, width=0.8)
    axes.set_xlabel("latent dimension, by its KL (grey: Var μ ≤ 0.01)")
    axes.set_ylabel("nats per image")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _save(figure, path)


def draw_codes(mu: Tensor, labels: Tensor, path: Path) -> None:
    """The means μ [N, Z] of q(z|x), coloured by digit: for Z > 2 where digits are told apart best.

    Where nothing tells them apart in two directions it is by the two dimensions in which μ varies most.
    """
    points, x_label, y_label = _plane(mu, labels)
    figure, axes = _figure(7, 5.5, f"posterior means of {len(mu):,} test images")
    for digit, colour in enumerate(DIGITS):
        x, y = points[labels == digit].T
        axes.scatter(x, y, s=3, alpha=0.5, linewidths=0, color=colour, label=str(digit))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    legend = axes.legend(title="digit", markerscale=4, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)
    _save(figure, path)


def _plane(mu: Tensor, labels: Tensor) -> tuple[Tensor, str, str]:
    if mu.shape[1] == 1:
        return torch.cat([mu, labels.view(-1, 1)], dim=1), "μ", "digit"
    if mu.shape[1] == 2:
        return mu, "μ of dimension 0", "μ of dimension 1"
    # Their principal components would show a Gaussian cloud, whatever the code holds: the prior asks for one.
    discriminant = LinearDiscriminantAnalysis(n_components=2)
    points = torch.empty(len(mu), 0)
    with suppress(IndexError):  # scikit-learn's, where μ is the same for all images
        points = torch.from_numpy(discriminant.fit_transform(mu.double().numpy(), labels.numpy()))
    if points.shape[1] < 2:  # a posterior that has collapsed, or almost: no plane tells the digits apart
        first, second = mu.var(dim=0).argsort(descending=True, stable=True)[:2].tolist()
        return mu[:, [first, second]], f"μ of dimension {first}", f"μ of dimension {second}"
    # An axis may point either way; the largest of its parts decides.
    parts = torch.from_numpy(discriminant.scalings_[:, :2])
    points *= parts.gather(0, parts.abs().argmax(dim=0, keepdim=True)).sign()
    return points, "first linear discriminant of the digits", "second linear discriminant"


def draw_bound(ks: Sequence[int], curves: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    """The bound of −log p(x) over K: each curve's means and standard errors. The last is far off: on the left only."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    far, near = figure.subplots(1, 2)
    for index, (name, (means, errors)) in enumerate(curves.items()):
        for axes in (far, near) if index < len(curves) - 1 else (far,):
            axes.errorbar(
                ks, means, errors, label=name, color=(BLUE, ORANGE, GREEN)[index], marker="o", markersize=4, capsize=2
            )
    for axes, title in ((far, "−log p(x) ≤ the bound from K draws"), (near, "the same, nearer")):
        axes.set_xscale("log")
        axes.set_xlabel("K, draws of z an image")
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
    # Levels 8 and 9 take five times as long for a file that is as large.
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None}, pil_kwargs={"compress_level": 7})
