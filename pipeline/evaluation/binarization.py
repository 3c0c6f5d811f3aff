"""The bridge between likelihoods: every run, whatever p(x|z) it was trained with, on one fixed set of binary images.

E_{b ~ Bern(x)}[−log p(b|z)] is the binary cross-entropy of x, so a model of grey values in [0, 1] is also one of binary
images. They are drawn once, from integers, so that they are the same on every machine, and their hash says so. Another
draw would move −log p(b) by about 0.06 nats.
"""

import hashlib
import math

import torch
from torch import Tensor

from pipeline.evaluation.importance import bernoulli_recon_of_draws
from pipeline.runtime.randomness import PROTOCOL_SEED, generator

LIMIT = 1e-4  # of the mean: nearer to 0 or 1 it would stake all on a pixel that the draw decides
LOGIT = math.log((1 - LIMIT) / LIMIT)


def binarize(images: Tensor) -> Tensor:
    """Images of 0 and 255, each pixel 255 with probability x / 255: uint8 [N, D] → uint8 [N, D], on the CPU."""
    draws = torch.randint(0, 255, images.shape, generator=generator(PROTOCOL_SEED, "binarize"), dtype=torch.uint8)
    return (draws < images.cpu()).to(torch.uint8) * 255


def digest(images: Tensor) -> str:
    """The sha256 of the bytes of images."""
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()


def clamped_recon_of_draws(logits: Tensor, b: Tensor) -> Tensor:
    """−log p(b|z_k) for K draws of z an image: logits [B, K, D], b [B, D] → [B, K], in nats.

    The decoder's mean is kept in [LIMIT, 1 − LIMIT].
    """
    return bernoulli_recon_of_draws(logits.clamp(-LOGIT, LOGIT), b)
