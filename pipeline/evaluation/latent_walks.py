"""Paths through the latent space, decoded: the same images and paths in every run."""

import torch
from torch import Tensor

from pipeline.data.datasets import Split
from pipeline.evaluation.bounds import concatenate, select
from pipeline.model.network import Posterior
from pipeline.model.vae import VAE
from pipeline.runtime.device import one_thread

BATCH = 10_000


@one_thread()
@torch.no_grad()
def encode(model: VAE, split: Split) -> Posterior:
    """q(z|x) of each image, on the CPU."""
    chunks = torch.arange(len(split.images)).split(BATCH)
    parts = [model.encode(select(split, chunk, model.device)) for chunk in chunks]
    return Posterior(*concatenate(parts))


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
    for row, dimension in enumerate(dimensions.tolist()):
        z[row, :, dimension] = values
    return decode(model, z, y.expand(len(dimensions)))


def manifold(model: VAE, side: int, y: Tensor) -> Tensor:
    """E[x|z] on side × side equally probable cells of a two-dimensional prior: [side, side, D].

    z_1 grows to the right, z_2 upwards, each through the quantiles of N(0, 1)
    (Kingma & Welling 2014, figure 4).
    """
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    z_2, z_1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return decode(model, torch.stack([z_1, z_2], dim=-1), y.expand(side))
