"""p(x|z): what the decoder's logits mean.

Bernoulli pixels. MNIST's grey values in [0, 1] stand in for probabilities, as is usual for this model: the binary
cross-entropy is then E_{b ~ Bern(x)}[−log p(b|z)], the mean over binarizations of x, and not a density of x itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bernoulli_recon(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x|z), summed over the pixels: logits and x [B, D] → [B], in nats."""
    return pixel_recon(logits, x).sum(dim=-1)


def pixel_recon(logits: Tensor, x: Tensor) -> Tensor:
    """−log p of each pixel, in nats: logits and x of any shape → the same shape.

    Computed from logits, log(1 + e^l) − l x, which stays finite where log(sigmoid(l)) does not.
    """
    # From the threshold on log(1 + e^l) is l, in float64 as well.
    return F.softplus(logits, threshold=40).addcmul_(logits, x, value=-1)


def bernoulli_recon_gradient(logits: Tensor, x: Tensor) -> Tensor:
    """The gradient of `bernoulli_recon` by the logits, written over them, pixel by pixel."""
    return logits.sigmoid_().sub_(x)


def bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x|z], what a picture shows: same shape, in [0, 1]."""
    return torch.sigmoid(logits)
