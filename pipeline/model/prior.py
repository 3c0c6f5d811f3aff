"""p(z) by name: what z is drawn from. A new one is a class and an entry in PRIORS.

A prior is an nn.Module, because it may have weights, and gives a distribution over z when it is
called with the encoder.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.model.network import Architecture, Posterior

LOG_2PI = math.log(2 * math.pi)
DENSITIES = 1 << 22  # of components that are computed at a time: 34 MB in float64
# Of pseudo-inputs before the sigmoid, which makes them gray values of about 0.05, like most pixels.
LOGIT_MEAN, LOGIT_STD = -3.0, 1.0

Encode = Callable[[Tensor], Posterior]  # images [K, D] to q(z|x) of each


class Distribution(Protocol):
    """A distribution over z. S draws of z per image are [B, S, Z], with ε of the same shape."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, [..., Z] → [...], in float64 if the device has it."""

    def log_ratio(self, z: Tensor, log_var: Tensor, eps: Tensor, scale: float = 1) -> Tensor:
        """Return log p(z) − log N(z; μ, (scale σ)²) at z = μ + scale σ ε: [..., Z] → [...]."""

    def kl_per_dimension(self, posterior: Posterior, z: Tensor, eps: Tensor) -> Tensor:
        """Return KL(q(z_j|x) ‖ p(z_j)) of each dimension, or an estimate from z ~ q, [B, Z]."""

    def kl(self, posterior: Posterior, z: Tensor, eps: Tensor) -> Tensor:
        """Return KL(q(z|x) ‖ p(z)), or an estimate from S draws z ~ q: z [B, S, Z] → [B]."""

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """Return z ~ p(z) [N, Z] from ε [N, Z] ~ N(0, I) and u [N], uniform in [0, 1)."""


class StandardNormal(nn.Module):
    """N(0, I), without weights: a prior, and its own distribution."""

    def forward(self, encode: Encode) -> Distribution:
        """The distribution."""
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """See Distribution."""
        return log_normal(z, z.new_zeros(1), z.new_zeros(1)).to(_exact(z)).sum(dim=-1)

    def log_ratio(self, z: Tensor, log_var: Tensor, eps: Tensor, scale: float = 1) -> Tensor:
        """Σ_j [log scale σ_j + ½ ε_j² − ½ z_j²]; the (2π)^½ of both cancel."""
        return (math.log(scale) + 0.5 * (log_var + eps.square() - z.square())).sum(dim=-1)

    def kl_per_dimension(self, posterior: Posterior, z: Tensor, eps: Tensor) -> Tensor:
        """In closed form: `z` is not read, and may contain any number of draws."""
        return gaussian_kl(posterior.mu.unsqueeze(-1), posterior.log_var.unsqueeze(-1))

    def kl(self, posterior: Posterior, z: Tensor, eps: Tensor) -> Tensor:
        """In closed form."""
        return gaussian_kl(*posterior)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """ε itself."""
        return eps


class Mixture:
    """Σ_k w_k N(μ_k, diag σ_k²): log w [K], μ and log σ² [K, Z]."""

    def __init__(self, log_weights: Tensor, components: Posterior) -> None:
        self.log_weights = log_weights
        self.mu, self.log_var = components

    def log_prob(self, z: Tensor) -> Tensor:
        """As products of matrices, and so in float64: terms as large as z² / σ_k² cancel."""
        z, mu, log_var = (tensor.to(_exact(z)) for tensor in (z, self.mu, self.log_var))
        precision = torch.exp(-log_var)
        peak = self.log_weights - 0.5 * (mu.square() * precision + log_var + LOG_2PI).sum(dim=-1)
        log_p = []
        for part in z.flatten(end_dim=-2).split(max(1, DENSITIES // len(mu))):
            each = part @ (mu * precision).T - 0.5 * part.square() @ precision.T + peak
            log_p.append(each.logsumexp(dim=-1))
        return torch.cat(log_p).view(z.shape[:-1])

    def log_ratio(self, z: Tensor, log_var: Tensor, eps: Tensor, scale: float = 1) -> Tensor:
        """log p(z) + Σ_j [log scale σ_j + ½ ε_j² + ½ log 2π]."""
        entropy = math.log(scale) + 0.5 * (log_var + eps.square() + LOG_2PI)
        return self.log_prob(z).to(z.dtype) + entropy.sum(dim=-1)

    def kl_per_dimension(self, posterior: Posterior, z: Tensor, eps: Tensor) -> Tensor:
        """log q(z_j|x) − log p(z_j) at z [B, Z], where p(z_j) is a mixture too."""
        marginals = []
        for j in range(z.shape[1]):
            components = Posterior(self.mu[:, j, None], self.log_var[:, j, None])
            marginals.append(Mixture(self.log_weights, components).log_prob(z[:, j, None]))
        return -0.5 * (posterior.log_var + eps.square() + LOG_2PI) - torch.stack(marginals, dim=1)

    def kl(self, posterior: Posterior, z: Tensor, eps: Tensor) -> Tensor:
        """Mean of log q(z|x) − log p(z) over the draws."""
        return -self.log_ratio(z, posterior.log_var.unsqueeze(1), eps).mean(dim=1)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """μ_k + σ_k ε for the component k in whose share of [0, 1) u lies."""
        ends = self.log_weights.exp().cumsum(dim=0)[:-1]
        k = torch.searchsorted(ends, u, right=True)
        return self.mu[k] + torch.exp(0.5 * self.log_var[k]) * eps


class MixturePrior(nn.Module):
    """A mixture of Gaussians with learned weights, means and variances."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape = (architecture.prior_components, architecture.z_dim)
        self.logits = nn.Parameter(torch.zeros(shape[0]))
        self.mu = nn.Parameter(torch.randn(shape))
        self.log_var = nn.Parameter(torch.zeros(shape))

    def forward(self, encode: Encode) -> Distribution:
        """The distribution."""
        log_weights = _widened(self.logits).log_softmax(dim=0)
        return Mixture(log_weights, Posterior(_widened(self.mu), _widened(self.log_var)))


class VampPrior(nn.Module):
    """The mean of q(z|u_k) over K learned images u_k (Tomczak & Welling 2018, eq. 9)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape = (architecture.prior_components, architecture.num_pixels)
        self.logits = nn.Parameter(LOGIT_MEAN + LOGIT_STD * torch.randn(shape))

    def forward(self, encode: Encode) -> Distribution:
        """The distribution."""
        components = encode(torch.sigmoid(_widened(self.logits)))
        log_weights = components.mu.new_full((len(self.logits),), -math.log(len(self.logits)))
        return Mixture(log_weights, components)


PRIORS: dict[str, Callable[[Architecture], nn.Module]] = {
    "normal": lambda _: StandardNormal(), "mixture": MixturePrior, "vamp": VampPrior,
}  # fmt: skip


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)) in closed form: μ and log σ² [B, Z] → [B], in nats.

    ½ Σ (σ² + μ² − 1 − log σ²)                                (Kingma & Welling 2014, appendix B)
    """
    return 0.5 * (log_var.exp() + mu.square() - 1 - log_var).sum(dim=-1)


def log_normal(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """Log N(z; μ, σ²), elementwise, of the broadcast shape: −½ log 2πσ² − ½ (z − μ)² / σ²."""
    peak = -0.5 * (LOG_2PI + log_var)
    return torch.addcmul(peak, (z - mu).square_(), -0.5 * (-log_var).exp())


def _exact(z: Tensor) -> torch.dtype:
    return torch.float32 if z.device.type == "mps" else torch.float64


def _widened(weights: Tensor) -> Tensor:
    """In float32, if the weights are in bfloat16."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32))
