"""p(x|z) by name: what the decoder's outputs mean. A new one is a class and a registry entry."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.network import Architecture

LEBESGUE = "lebesgue"
# Of a continuous Bernoulli: for smaller logits the closed forms cancel, and their Taylor series of
# three terms are exact up to 1e-13.
SMALL = 0.1
# Of a Gaussian, the first σ²: that of a pixel about which nothing is known, uniform in [0, 1].
UNIFORM = 1 / 12
# And its smallest: the error of rounding to gray levels. Below it, a density describes no pictures,
# and if all of them are equal it would grow without a bound.
ROUNDING = 1 / 12 / 255**2
# Of the running average of σ². Over some twenty steps weights change little, and the average of
# batches of 128 images varies by 0.6 %, which costs 0.01 nats: D / 4 times the square.
RATE = 0.05


class Likelihood(nn.Module):
    """Distributions over images, one parameter vector per image. It may have weights itself."""

    name: str
    # What p(x|z) is a density with respect to, LEBESGUE if its integral over x in [0, 1]^D or R^D
    # is 1. Likelihoods with one measure can be compared, one without only with itself.
    measure: str | None = None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()

    def num_outputs(self, num_pixels: int) -> int:
        """O, the number of decoder outputs for images of D pixels: one per pixel."""
        return num_pixels

    def neg_log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z) in nats, summed over pixels: [..., O], [..., D] → [...], broadcast."""
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """E[x|z], [..., O] → [..., D] in [0, 1]: what a picture shows. Here the sigmoid."""
        return torch.sigmoid(outputs)


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


class ContinuousBernoulli(Likelihood):
    """p(x) = C(λ) λ^x (1 − λ)^(1 − x) on [0, 1]; the outputs are logits l of λ, which is no mean.

    As an exponential family p(x) = exp(l x − A(l)): C(λ) = exp(−A(l)) / (1 − λ)
    (Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli").
    """

    name = "continuous_bernoulli"
    measure = LEBESGUE

    def neg_log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Σ A(l) − l x, where A(l) = log ∫ e^(l x) dx = log (e^l − 1) / l."""
        near = outputs.clamp(-SMALL, SMALL)
        square = near.square()
        series = near / 2 + square / 24 - square**2 / 2880 + square**3 / 181440
        size = outputs.abs().clamp(min=SMALL)
        closed = outputs.clamp(min=0) + torch.log(-torch.expm1(-size) / size)
        log_normalizer = torch.where(outputs.abs() < SMALL, series, closed)
        return torch.addcmul(log_normalizer, outputs, x, value=-1).sum(dim=-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """The derivative of A: 1 / (1 − e^−l) − 1 / l."""
        near = outputs.clamp(-SMALL, SMALL)
        series = 0.5 + near * (1 / 12 - near**2 / 720 + near**2 * near**2 / 30240)
        small = outputs.abs() < SMALL
        other = outputs.masked_fill(small, SMALL)
        return torch.where(small, series, -1 / torch.expm1(-other) - 1 / other)


class Gaussian(Likelihood):
    """N(x | m, σ² I) with one σ for all pixels and images: learned, optimal or a number.

    m is the sigmoid of the outputs: pixels lie in [0, 1], and so do their means, which pictures
    show and which are probabilities of binary pixels.

    The optimal σ² maximizes the likelihood: the mean squared error (Rybkin et al. 2021, "Simple and
    effective VAE training with calibrated decoders", σ-VAE). In training it is that of the batch,
    in evaluation the average of those of the last steps, which is part of the model.
    """

    name = "gaussian"
    measure = LEBESGUE
    average: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.sigma = architecture.sigma
        if self.sigma == "learned":
            self.log_sigma = nn.Parameter(torch.tensor(math.log(UNIFORM - ROUNDING) / 2))
        elif self.sigma == "optimal":
            # Running averages of σ² and of 1 that start at 0: their ratio has no bias, as in Adam.
            # 1e-9 is for a model without any step.
            self.register_buffer("average", 1e-9 * torch.tensor([UNIFORM, 1.0]))

    def neg_log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Σ (x − m)² / 2σ² + ½ log 2πσ²."""
        errors = (x - self.mean(outputs)).square()
        variance = self._variance(errors)
        constants = 0.5 * errors.shape[-1] * torch.log(2 * math.pi * variance)
        return errors.sum(dim=-1) / (2 * variance) + constants

    def _variance(self, errors: Tensor) -> Tensor:
        if self.sigma == "learned":
            return torch.exp(2 * self.log_sigma) + ROUNDING
        if self.sigma == "optimal":
            return self._optimal_variance(errors).clamp(min=ROUNDING)
        return errors.new_full((), float(self.sigma) ** 2)

    @torch.no_grad()
    def _optimal_variance(self, errors: Tensor) -> Tensor:
        """No gradient is needed: that of the loss by σ² is zero at the optimum (envelope theorem).

        The average is updated in place, for CUDA graphs and for resuming.
        """
        if not self.training:
            return self.average[0] / self.average[1]
        variance = errors.mean()
        step = torch.stack([variance, torch.ones_like(variance)])
        self.average.lerp_(step.to(self.average), RATE)
        return variance


LIKELIHOODS: dict[str, type[Likelihood]] = {
    each.name: each for each in (Bernoulli, ContinuousBernoulli, Gaussian)
}
