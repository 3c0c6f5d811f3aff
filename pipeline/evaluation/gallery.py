"""The figures of a run: the same images and paths through the latent space in every run."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from pipeline.data.datasets import Split, to_unit
from pipeline.evaluation.latent_walks import interpolate, manifold, traverse
from pipeline.evaluation.plots import draw_codes, draw_kl, draw_rows
from pipeline.model.vae import VAE

STEPS = 9  # images on the way from one to another
ROWS = 10  # classes, and dimensions of largest KL, that are shown at most
SIDE = 20  # cells of the latent plane


def draw_gallery(model: VAE, split: Split, mu: Tensor, kl: pd.DataFrame, folder: Path) -> None:
    """Write every figure of the latent code; μ [N, Z]; `kl` has dimension, kl and active by rank."""
    shape, y = split.image_shape, split.labels[0]
    draw_kl(kl, folder / "kl_per_dimension.png")
    draw_codes(mu, split.labels, folder / "posterior_means.png")
    draw_interpolations(model, split, mu, folder / "interpolations.png")
    values = torch.arange(-3, 3.1, 0.75)
    top = kl[:ROWS]
    draw_rows(
        traverse(model, mu[0], torch.tensor(top.dimension.to_numpy()), values, y), shape,
        folder / "traversals.png", title="one latent dimension at a time, those of largest KL",
        x_label="value of the dimension", columns=[f"{value:g}" for value in values.tolist()],
        rows=[f"dimension {row.dimension}: {row.kl:.2f} nats" for row in top.itertuples()],
    )  # fmt: skip
    if model.z_dim == 2:
        title, x_label = "latent plane, cells of equal probability", "dimension 0 →, dimension 1 ↑"
        plane = manifold(model, SIDE, y)
        draw_rows(plane, shape, folder / "manifold.png", title=title, x_label=x_label)


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
        title="from one test image to another", columns=["image", *shares, "image"],
        x_label="share of the way between their posterior means",
    )  # fmt: skip
