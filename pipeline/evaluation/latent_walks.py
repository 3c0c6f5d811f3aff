"""What the latent space is like: ways through it, decoded. Fixed images and fixed ways in every run."""

import torch
from torch import Tensor

from pipeline.runtime.device import one_thread
from pipeline.model.likelihood import bernoulli_mean
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE

BATCH = 10_000


@one_thread()
@torch.no_grad()
def encode(model: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """μ and log σ² of q(z|x): uint8 [n, D] → [n, Z] twice, on the CPU."""
    device = next(model.parameters()).device
    halves = [model.encode(to_unit(some.to(device))) for some in images.split(BATCH)]
    mu, log_var = (torch.cat(half).cpu() for half in zip(*halves, strict=True))
    return mu, log_var


@one_thread()
@torch.no_grad()
def decode_grid(model: VAE, z: Tensor) -> Tensor:
    """E[x|z]: [rows, columns, Z] → [rows, columns, D] in [0, 1], on the CPU."""
    return bernoulli_mean(model.decode(z.to(next(model.parameters()).device))).cpu()


def interpolate(model: VAE, starts: Tensor, ends: Tensor, steps: int) -> Tensor:
    """E[x|z] on the line from μ(start) to μ(end), both included: uint8 [n, D] twice → [n, steps, D]."""
    t = torch.linspace(0, 1, steps).view(1, -1, 1)
    first, last = (encode(model, images)[0].unsqueeze(1) for images in (starts, ends))
    z = torch.lerp(first, last, t)
    return decode_grid(model, z)


def traverse(model: VAE, image: Tensor, dimensions: Tensor, values: Tensor) -> Tensor:
    """E[x|z] as one dimension of μ(image) takes each of `values`: uint8 [D] → [len(dimensions), len(values), D]."""
    z = encode(model, image.unsqueeze(0))[0].repeat(len(dimensions), len(values), 1)
    for row, dimension in enumerate(dimensions.tolist()):
        z[row, :, dimension] = values
    return decode_grid(model, z)


def manifold(model: VAE, side: int) -> Tensor:
    """E[x|z] on side × side equally probable cells of the prior of a model of two dimensions: [side, side, D].

    z_1 grows to the right, z_2 upwards, each through the quantiles of N(0, 1) (Kingma & Welling 2014, figure 4).
    """
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    z_2, z_1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return decode_grid(model, torch.stack([z_1, z_2], dim=-1))
