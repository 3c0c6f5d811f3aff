"""What a model shows: samples from the prior and reconstructions, always from the same noise.

The noise depends neither on `seed` nor, dimension by dimension, on `z_dim`: a grid of one epoch or run can be laid
beside that of another.
"""

import torch
from torch import Tensor

from pipeline.runtime.device import one_thread
from pipeline.model.likelihood import bernoulli_mean
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE, reparameterize
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal_columns


@one_thread()
@torch.no_grad()
def generate(model: VAE, n: int) -> Tensor:
    """E[x|z] for n fixed z ~ N(0, I): [n, D] in [0, 1], on the CPU. The decoder alone is used."""
    z = standard_normal_columns(n, model.z_dim, PROTOCOL_SEED, "generate").to(_device(model))
    return bernoulli_mean(model.decode(z)).cpu()


@one_thread()
@torch.no_grad()
def reconstruct(model: VAE, images: Tensor) -> Tensor:
    """E[x|z] for one z ~ q(z|x) an image, with fixed noise: uint8 [n, D] → [n, D] in [0, 1], on the CPU."""
    eps = standard_normal_columns(len(images), model.z_dim, PROTOCOL_SEED, "reconstruct").to(_device(model))
    mu, log_var = model.encode(to_unit(images.to(_device(model))))
    return bernoulli_mean(model.decode(reparameterize(mu, log_var, eps))).cpu()


def _device(model: VAE) -> torch.device:
    return next(model.parameters()).device
