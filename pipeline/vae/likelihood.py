"""p(x|z): what the decoder's logits mean.

Bernoulli pixels. MNIST's grey values in [0, 1] stand in for probabilities, as is usual for this model: the binary
cross-entropy is then E_{b ~ Bern(x)}[−log p(b|z)], the mean over binarizations of x, and not a density of x itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bernoulli_recon(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x|z), summed over pixels: logits and x [B, D] → [B], in nats.

    Computed from logits (max(l, 0) − l x + log(1 + e^−|l|)), which stays finite where log(sigmoid(l)) does not.
    """
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=-1)


def bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x|z], what a picture shows: same shape, in [0, 1]."""
    return torch.sigmoid(logits)
