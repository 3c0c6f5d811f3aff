"""−log p(x|z) for K draws of z per image: the definition, and a faster Bernoulli version.

The fast version is used only if it agrees with the definition on the first images.

The fixed binarization b of the test images is the bridge between likelihoods: every model assigns a
probability to binary images. The binary cross-entropy of x is E_{b ~ Bern(x)}[−log p(b|z)].
"""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.likelihood import Likelihood
from pipeline.model.network import Batch
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal

# With a mean closer to 0 or 1, one pixel of the binarization could cost any number of nats.
LIMIT = 1e-4
LOGIT = math.log((1 - LIMIT) / LIMIT)
FACTORS = 64  # factors of at least ½ per logarithm: 2^−64 is far inside the range of float32

# Maps decoder outputs [B, K, O], or [1, K, O] shared by all images, and images [B, D] to [B, K].
Recon = Callable[[Tensor, Tensor], Tensor]


class Recons(NamedTuple):
    """−log p(·|z) in nats, summed over pixels."""

    gray: Recon  # of images in [0, 1]
    binary: Recon  # of images of 0 and 1, with the decoder's mean clamped to [LIMIT, 1 − LIMIT]


def definition(likelihood: Likelihood) -> Recons:
    """Both, for any likelihood."""

    def binary(outputs: Tensor, b: Tensor) -> Tensor:
        mean = likelihood.mean(outputs).clamp(LIMIT, 1 - LIMIT)
        probability = (1 - b.unsqueeze(1) - mean).abs()  # of b: the mean where b is 1
        return -probability.log().sum(dim=-1)

    return Recons(lambda outputs, x: likelihood.neg_log_prob(outputs, x.unsqueeze(1)), binary)


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Bernoulli.neg_log_prob in about half the time: Σ max(l, 0) − l x − log Π sigmoid |l|.

    The logarithm is taken of products of FACTORS sigmoids, each in [½, 1].
    """
    linear = logits.clamp(min=0).sum(dim=-1) - torch.einsum("bkd,bd->bk", logits, x)
    product = logits.abs().sigmoid_()
    factors = 1
    while product.shape[-1] % 2 == 0 and factors < FACTORS:
        first, second = product.chunk(2, dim=-1)
        product, factors = first * second, 2 * factors
    return linear - product.log().sum(dim=-1)


def bernoulli_clamped(logits: Tensor, b: Tensor) -> Tensor:
    """The same with the mean clamped to [LIMIT, 1 − LIMIT]."""
    return bernoulli(logits.clamp(-LOGIT, LOGIT), b)


FAST = {"bernoulli": Recons(bernoulli, bernoulli_clamped)}


@torch.no_grad()
def choose(model: VAE, batch: Batch) -> Recons:
    """The fast version if it equals the definition on `batch` up to rounding, else the latter."""
    name, exact = model.likelihood.name, definition(model.likelihood)
    fast = FAST.get(name, exact)
    noise = standard_normal((16, model.z_dim), PROTOCOL_SEED, "check").to(batch.x)
    outputs = model.decode(model.encode(batch).mu.unsqueeze(1) + noise, batch.y)
    for ours, theirs, x in zip(fast, exact, (batch.x, batch.x.round()), strict=True):
        if not torch.allclose(ours(outputs, x), theirs(outputs, x), rtol=1e-5, atol=1e-3):
            message = f"the fast {name} likelihood differs from neg_log_prob, which is used"
            print(f"evaluate: {message}", file=sys.stderr)
            return exact
    return fast
