"""The figures of one run: the same images, noise and paths through the latent space in every run."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from pipeline.data.datasets import Split, to_unit
from pipeline.evaluation.latent_walks import interpolate, manifold, traverse
from pipeline.evaluation.plots import draw_codes, draw_kl, draw_rows
from pipeline.model.vae import VAE

STEPS = 9  # images between one and another
ROWS = 10  # classes, and dimensions of largest KL, that are shown at most
SIDE = 20  # cells of the latent plane


def draw_gallery(
    model: VAE, split: Split, mu: Tensor, kl_table: pd.DataFrame, folder: Path
) -> None:
    """Write interpolations, traversals, KL per dimension, codes, and the manifold of a plane.

    mu: the codes [N, Z] of the split; kl_table: rank, dimension, kl, active.
    """
    draw_kl(kl_table, folder / "kl_per_dimension.png")
    draw_codes(mu, split.labels, folder / "posterior_means.png")
    draw_interpolations(model, split, mu, folder / "interpolations.png")
    draw_traversals(model, split, mu, kl_table[:ROWS], folder / "traversals.png")
    if model.z_dim == 2:
        draw_rows(
            manifold(model, SIDE, split.labels[0]), split.image_shape, folder / "manifold.png",
            labels=[""] * SIDE, ticks=[""] * SIDE, title="latent plane, cells of equal probability",
            x_label="dimension 0 to the right, dimension 1 upwards",
        )  # fmt: skip


def draw_interpolations(model: VAE, split: Split, mu: Tensor, path: Path) -> None:
    """From the first image of each class to that of the next, with the images at both ends."""
    classes = split.labels.unique()[:ROWS]
    starts = torch.stack([(split.labels == label).nonzero()[0, 0] for label in classes])
    ends = starts.roll(-1)
    between = interpolate(model, mu[starts], mu[ends], STEPS, split.labels[starts])
    first, last = (to_unit(split.images[index]).unsqueeze(1) for index in (starts, ends))
    shares = [f"{step / (STEPS - 1):.2f}" for step in range(STEPS)]
    draw_rows(
        torch.cat([first, between, last], dim=1), split.image_shape, path,
        labels=[""] * len(starts), ticks=["image", *shares, "image"],
        title="from one test image to another",
        x_label="share of the way between their posterior means",
    )  # fmt: skip


def draw_traversals(model: VAE, split: Split, mu: Tensor, top: pd.DataFrame, path: Path) -> None:
    """The first image, with one latent dimension at a time set to values from −3 to 3."""
    values = torch.arange(-3, 3.1, 0.75)
    dimensions = torch.tensor(top.dimension.to_numpy())
    draw_rows(
        traverse(model, mu[0], dimensions, values, split.labels[0]), split.image_shape, path,
        labels=[f"dimension {row.dimension}: {row.kl:.2f} nats" for row in top.itertuples()],
        ticks=[f"{value:g}" for value in values.tolist()],
        title="one latent dimension at a time, those of largest KL", x_label="value of the dimension",
    )  # fmt: skip
