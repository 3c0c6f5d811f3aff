"""What the latent code holds: KL per dimension, active units, and what the KL is made of.

E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j))
                        mutual information, total correlation, dimension-wise KL

for the aggregate posterior q(z) = (1/N) Σ_n q(z|x_n) (Hoffman & Johnson 2016, "ELBO surgery"; Chen et al. 2018,
"Isolating sources of disentanglement", eq. 2). q(z) is a mixture of N known Gaussians, so that its logarithm is exact
and only the mean over z is sampled. The mutual information is that with the index of an image: it cannot exceed log N.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.vae import reparameterize
from pipeline.model.objective import gaussian_kl

ACTIVE = 0.01  # Var_x(μ_j) above which a unit counts as active (Burda et al. 2016, section 5)
CHUNK = 1 << 18  # numbers held at a time: what a core's cache holds
BUDGET = 1_000_000_000  # numbers in all: a second and a half on a core


class KLSplit(NamedTuple):
    """The parts of the KL of each image, [N] in nats; their sum is the KL in the mean, as far as z is sampled."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor


def kl_per_dimension(mu: Tensor, log_var: Tensor) -> Tensor:
    """E_x KL(q(z_j|x) ‖ N(0, 1)): μ and log σ² [N, Z] → [Z], in nats, in float64."""
    return gaussian_kl(mu.double().unsqueeze(-1), log_var.double().unsqueeze(-1)).mean(dim=0)


def active_units(mu: Tensor) -> Tensor:
    """Whether Var_x(E_q[z_j]) > 0.01, for each latent dimension: μ [N, Z] → bool [Z]."""
    return mu.double().var(dim=0, correction=0) > ACTIVE


def affordable_draws(n: int, z_dim: int) -> int:
    """From how many of n images a z is drawn: 5,000 of 10,000 at z_dim 20; only the errors grow with it."""
    return min(n, max(500, BUDGET // (n * z_dim)))


@torch.no_grad()
def kl_split(mu: Tensor, log_var: Tensor, eps: Tensor) -> KLSplit:
    """The parts of the KL from one z ~ q(z|x) of M of the images: μ, log σ² [N, Z], ε ~ N(0, I) [M, Z] → [M].

    The M lie evenly among the N: the first of MNIST's test images are easier than the last.
    """
    n, m = len(mu), len(eps)
    chosen = torch.arange(m) * n // m
    z = reparameterize(mu[chosen], log_var[chosen], eps)
    log_conditional = log_normal(z, mu[chosen], log_var[chosen]).double().sum(dim=-1)
    # A dimension at a time, the images side by side in memory: log N(z; μ, σ²) = peak − ½ (z − μ)² / σ².
    rows = [column.T.contiguous() for column in (mu, -0.5 * (-log_var).exp(), -0.5 * (math.log(2 * math.pi) + log_var))]
    log_joint, log_marginals = [], []
    for start in range(0, m, max(1, CHUNK // n)):
        chunk, own = (some[start : start + max(1, CHUNK // n)] for some in (z, chosen))
        log_q, marginals = z.new_zeros(len(chunk), n), torch.zeros(len(chunk), dtype=torch.float64)
        for z_j, mu_j, factor, peak in zip(chunk.T, *rows, strict=True):
            log_q_j = torch.addcmul(peak, (z_j.unsqueeze(1) - mu_j).square_(), factor)  # each z under each image's q
            marginals += _log_sum(log_q_j, own) - math.log(n)
            log_q += log_q_j
        log_joint.append(_log_sum(log_q, own) - math.log(n))
        log_marginals.append(marginals)
    joint, marginals = torch.cat(log_joint), torch.cat(log_marginals)
    log_prior = log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).double().sum(dim=-1)
    return KLSplit(
        mutual_information=log_conditional - joint,
        total_correlation=joint - marginals,
        dimension_wise=marginals - log_prior,
    )


def _log_sum(log_q: Tensor, own: Tensor) -> Tensor:
    """Log Σ_n q_n of each row: [B, N] → [B], in float64.

    A log-softmax is log q − log Σ q, and takes a third of the time of `logsumexp`. It is read where z came from, at
    image `own` [B], for there neither is large.
    """
    log_own, share = (values.gather(1, own.unsqueeze(1)).squeeze(1) for values in (log_q, log_q.log_softmax(dim=1)))
    return log_own.double() - share.double()


def log_normal(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """Log N(z; μ, σ²), elementwise, of the broadcast shape."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (z - mu).square() * (-log_var).exp())
