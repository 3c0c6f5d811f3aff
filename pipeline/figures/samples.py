"""Samples from the prior and reconstructions, always from the same noise.

The noise depends neither on `seed` nor, dimension by dimension, on `z_dim`: grids of different
epochs and runs can be compared cell by cell.
"""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.datasets import Split, to_unit
from pipeline.figures.grids import COLUMNS, save_grid, save_pairs
from pipeline.model.network import to_batch
from pipeline.model.objective import reparameterize
from pipeline.model.vae import VAE
from pipeline.runtime.device import one_thread
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal_columns, uniform

BATCH = 1000  # images that are decoded at a time


@one_thread()
@torch.no_grad()
def generate(model: VAE, labels: Tensor, seed: int = PROTOCOL_SEED) -> Tensor:
    """E[x|z] for one z ~ p(z) per label [N] (ignored by an unconditional network).

    Returns [N, D] in [0, 1], on the CPU. The encoder is not used.
    """
    eps = standard_normal_columns(len(labels), model.z_dim, seed, "generate")
    u = uniform(len(labels), seed, "generate")
    z = model.p_z().sample(eps.to(model.device), u.to(model.device))
    parts = zip(z.split(BATCH), labels.long().to(model.device).split(BATCH), strict=True)
    return torch.cat([model.mean(*part).cpu() for part in parts])


@one_thread()
@torch.no_grad()
def reconstruct(model: VAE, split: Split) -> Tensor:
    """E[x|z] for one z ~ q(z|x) per image, with fixed noise: [N, D] in [0, 1], on the CPU."""
    batch = to_batch(split, model.device)
    eps = standard_normal_columns(len(batch.x), model.z_dim, PROTOCOL_SEED, "reconstruct")
    z = reparameterize(model.encode(batch), eps.to(model.device))
    return model.mean(z, batch.y).cpu()


def save_samples(
    model: VAE, count: int, split: Split, generated: Path, reconstructed: Path
) -> None:
    """Write two grids: `count` samples from the prior, and the images with reconstructions.

    The samples of a conditional model are one row per class.
    """
    classes = torch.arange(model.architecture.num_classes)
    labels = classes.repeat_interleave(COLUMNS) if len(classes) else torch.zeros(count)
    save_grid(generate(model, labels), split.image_shape, generated)
    images = to_unit(split.images).cpu()
    save_pairs(images, reconstruct(model, split), split.image_shape, reconstructed)
