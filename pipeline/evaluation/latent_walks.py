"""Paths through the latent space, decoded: the same images and paths in every run."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from pipeline.data.datasets import Split, to_unit
from pipeline.evaluation.plots import draw_rows
from pipeline.model.vae import VAE
from pipeline.runtime.device import one_thread

STEPS = 9  # images on the way from one to another
ROWS = 10  # classes, and dimensions of largest KL, that are shown at most
SIDE = 20  # cells of the latent plane


@one_thread()
@torch.no_grad()
def decode(model: VAE, z: Tensor, labels: Tensor) -> Tensor:
    """E[x|z] for rows of codes z [R, C, Z], one label [R] per row: [R, C, D] in [0, 1], CPU."""
    y = labels.long().unsqueeze(1).expand(z.shape[:2])
    return model.mean(z.to(model.device), y.to(model.device)).cpu()


def interpolate(model: VAE, starts: Tensor, ends: Tensor, steps: int, labels: Tensor) -> Tensor:
    """E[x|z] on straight lines, ends included: codes [R, Z] twice → [R, steps, D]."""
    shares = torch.linspace(0, 1, steps).view(1, -1, 1)
    return decode(model, torch.lerp(starts.unsqueeze(1), ends.unsqueeze(1), shares), labels)


def traverse(model: VAE, code: Tensor, dimensions: Tensor, values: Tensor, y: Tensor) -> Tensor:
    """E[x|z] as one dimension of a code [Z] takes each of `values` [C]: row by row, [R, C, D]."""
    z = code.repeat(len(dimensions), len(values), 1)
    z[torch.arange(len(dimensions)), :, dimensions] = values
    return decode(model, z, y.expand(len(dimensions)))


def manifold(model: VAE, side: int, y: Tensor) -> Tensor:
    """E[x|z] on side × side equally probable cells of a two-dimensional prior: [side, side, D].

    z_1 grows to the right, z_2 upwards, each through the quantiles of N(0, 1)
    (Kingma & Welling 2014, figure 4).
    """
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    z_2, z_1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return decode(model, torch.stack([z_1, z_2], dim=-1), y.expand(side))


def first_images(split: Split) -> Tensor:
    """The number of the first image of each class or, without labels, of the first ROWS images."""
    if not split.has_labels:
        return torch.arange(min(ROWS, len(split.images)))
    classes = split.labels.unique()[:ROWS]
    return torch.stack([(split.labels == label).nonzero()[0, 0] for label in classes])


def draw_walks(model: VAE, split: Split, mu: Tensor, kl: pd.DataFrame, folder: Path) -> None:
    """Write interpolations, traversals and, for two dimensions, the manifold.

    mu: codes [N, Z] of the split; kl: columns dimension and kl, the largest first.
    """
    shape, y = split.image_shape, split.labels[0]
    starts = first_images(split)
    if model.architecture.num_classes == 0:
        ends = starts.roll(-1)
    else:  # both ends have the label that the row is decoded with
        ends = torch.stack([(split.labels == y).nonzero()[-1, 0] for y in split.labels[starts]])
    between = interpolate(model, mu[starts], mu[ends], STEPS, split.labels[starts])
    first, last = (to_unit(split.images[index]).unsqueeze(1) for index in (starts, ends))
    shares = [f"{share:.2f}" for share in torch.linspace(0, 1, STEPS)]
    draw_rows(
        torch.cat([first, between, last], dim=1), shape, folder / "interpolations.png",
        title="from one test image to another", columns=["image", *shares, "image"],
        x_label="share of the way between their posterior means",
    )  # fmt: skip
    top, values = kl[:ROWS], torch.arange(-3, 3.1, 0.75)
    draw_rows(
        traverse(model, mu[0], torch.tensor(top.dimension.to_numpy()), values, y), shape,
        folder / "traversals.png", title="one latent dimension at a time, those of largest KL",
        x_label="value of the dimension", columns=[f"{value:g}" for value in values],
        rows=[f"dimension {row.dimension}: {row.kl:.2f} nats" for row in top.itertuples()],
    )  # fmt: skip
    if model.z_dim == 2 and model.architecture.prior == "normal":
        draw_rows(
            manifold(model, SIDE, y), shape, folder / "manifold.png",
            title="the latent plane in cells of equal probability",
            x_label="dimension 0 to the right, dimension 1 upwards",
        )  # fmt: skip
