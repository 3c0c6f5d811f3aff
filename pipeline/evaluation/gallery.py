"""The pictures that a run is looked at with: the same images, noise and ways through the latent space in every run."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.evaluation.latent_walks import encode, interpolate, manifold, traverse
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE
from pipeline.evaluation.plots import draw_codes, draw_kl, draw_rows
from pipeline.evaluation.posterior import active_units, kl_per_dimension

STEPS = 9  # images on the way from one to another
SHOWN = 10  # dimensions, those of the largest KL
SIDE = 20  # cells of the latent plane


def draw_gallery(model: VAE, images: Tensor, labels: Tensor, folder: Path) -> None:
    """Write interpolations, traversals, KL per dimension, posterior means, and of a latent plane the manifold.

    `images` uint8 [N, D] and the digits that they show, uint8 [N].
    """
    mu, log_var = encode(model, images)
    kl = kl_per_dimension(mu, log_var)
    draw_kl(kl, active_units(mu), folder / "kl_per_dimension.png")
    draw_codes(mu, labels, folder / "posterior_means.png")
    _interpolations(model, images, labels, folder / "interpolations.png")
    _traversals(model, images[0], kl, folder / "traversals.png")
    if model.z_dim == 2:
        nothing = [""] * SIDE
        draw_rows(
            manifold(model, SIDE), folder / "manifold.png", labels=nothing, ticks=nothing,
            title="the latent plane, in cells of equal probability",
            x_label="dimension 0 to the right, dimension 1 upwards",
        )  # fmt: skip


def _interpolations(model: VAE, images: Tensor, labels: Tensor, path: Path) -> None:
    """From the first image of each digit to that of the next, the images themselves at both ends."""
    firsts = [images[labels == digit][:1] for digit in range(10) if (labels == digit).any()]
    starts, ends = torch.cat(firsts), torch.cat(firsts[1:] + firsts[:1])
    between = interpolate(model, starts, ends, STEPS)
    rows = torch.cat([to_unit(starts).unsqueeze(1), between, to_unit(ends).unsqueeze(1)], dim=1)
    ticks = ["image", *(f"{step / (STEPS - 1):.2f}" for step in range(STEPS)), "image"]
    draw_rows(
        rows, path, labels=[""] * len(rows), ticks=ticks,
        title="from one test image to another", x_label="share of the way between their posterior means",
    )  # fmt: skip


def _traversals(model: VAE, image: Tensor, kl: Tensor, path: Path) -> None:
    dimensions = kl.argsort(descending=True)[:SHOWN]
    values = torch.arange(-3, 3.1, 0.75)
    draw_rows(
        traverse(model, image, dimensions, values), path,
        labels=[f"dimension {j}: {kl[j]:.2f} nats" for j in dimensions.tolist()],
        ticks=[f"{value:g}" for value in values.tolist()],
        title="one latent dimension at a time, those of the largest KL", x_label="the value that it is given",
    )  # fmt: skip
