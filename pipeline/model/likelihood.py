"""p(x|z) by name: what the decoder's outputs mean. A new one is a class and a registry entry."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.network import Architecture


class Likelihood(nn.Module):
    """Distributions over images, one parameter vector per image. It may have weights itself."""

    name: str

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()

    def num_outputs(self, num_pixels: int) -> int:
        """O, the number of decoder outputs for images of D pixels: one per pixel."""
        return num_pixels

    def neg_log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z) in nats, summed over pixels: [..., O], [..., D] → [...], broadcast."""
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x|z], [..., O] → [..., D] in [0, 1]: what a picture shows."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Bernoulli pixels; the outputs are logits.

    Gray values in [0, 1] are treated as probabilities, as is usual for this model: the binary
    cross-entropy is then E_{b ~ Bern(x)}[−log p(b|z)], the mean over binarizations of x. It is not
    a density of x itself.
    """

    name = "bernoulli"

    def neg_log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Σ log(1 + e^l) − l x, which stays finite where log(sigmoid(l)) does not."""
        # Above the threshold log(1 + e^l) equals l, also in float64.
        softplus = F.softplus(outputs, threshold=40)
        return torch.addcmul(softplus, outputs, x, value=-1).sum(dim=-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Sigmoid of the logits."""
        return torch.sigmoid(outputs)


LIKELIHOODS: dict[str, type[Likelihood]] = {each.name: each for each in (Bernoulli,)}
