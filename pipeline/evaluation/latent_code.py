"""The latent code: KL per dimension, active units, a decomposition of the KL, and probes of μ.

E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j))
                        mutual information, total correlation, dimension-wise KL

for the aggregate posterior q(z) = (1/N) Σ_n q(z|x_n) (Hoffman & Johnson 2016, "ELBO surgery";
Chen et al. 2018, "Isolating sources of disentanglement", eq. 2). q(z) is a mixture of N known
Gaussians: its logarithm is exact, and only the mean over z is sampled. The mutual information is
that with the index of an image, so it cannot exceed log N.

Probes are classifiers that predict the label from μ, trained on the training images' μ. The labels
play no part in the training of an unconditional VAE.
"""

import math

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.model.network import Posterior
from pipeline.model.objective import reparameterize
from pipeline.model.prior import Distribution, log_normal

ACTIVE = 0.01  # Var_x(μ_j) above which a unit counts as active (Burda et al. 2016, section 5)
CHUNK = 1 << 18  # densities computed at a time: what the cache of a core holds
BUDGET = 500_000_000  # densities in all: one and a half seconds on one core
PROBES = {
    # Brute force is exact for any z_dim, with one order of the neighbors.
    "knn_accuracy": KNeighborsClassifier(15, algorithm="brute"),
    "probe_accuracy": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}


def kl_per_dimension(posterior: Posterior, prior: Distribution, eps: Tensor) -> Tensor:
    """E_x KL(q(z_j|x) ‖ p(z_j)) of each latent dimension: [Z], in nats, in float64.

    ε ~ N(0, I) is [N, Z].
    """
    exact = Posterior(*(part.double() for part in posterior))
    z = reparameterize(exact, eps)
    return prior.kl_per_dimension(exact, z, eps.double()).mean(dim=0)


def active_units(mu: Tensor) -> Tensor:
    """Whether Var_x(E_q[z_j]) > 0.01, for each latent dimension: μ [N, Z] → bool [Z]."""
    return mu.double().var(dim=0, correction=0) > ACTIVE


def affordable_draws(n: int, z_dim: int) -> int:
    """The number of images, out of n, to draw a z from: 2,500 of 10,000 for z_dim 20.

    The standard errors are the only thing that depends on it.
    """
    return min(n, max(500, BUDGET // (n * z_dim)))


@torch.no_grad()
def kl_split(posterior: Posterior, prior: Distribution, eps: Tensor) -> dict[str, Tensor]:
    """The parts of the KL by name, [M] in nats, from one z ~ q(z|x) of M of the N images.

    ε ~ N(0, I) is [M, Z]. The M images are evenly spaced: the first of MNIST's test images are
    easier than the last. In expectation over z the sum of the parts is the KL.
    """
    n, m = len(posterior.mu), len(eps)
    own = torch.arange(m) * n // m
    q = Posterior(posterior.mu[own], posterior.log_var[own])
    z = reparameterize(q, eps)
    step = max(1, CHUNK // n)
    chunks = zip(z.split(step), own.split(step), strict=True)
    parts = [_log_aggregate(posterior, *chunk) for chunk in chunks]
    joint, marginals = (torch.cat(part) for part in zip(*parts, strict=True))
    log_conditional = log_normal(z, *q).double().sum(dim=-1)
    return {
        "mutual_information": log_conditional - joint,
        "total_correlation": joint - marginals,
        "dimension_wise_kl": marginals - prior.log_prob(z),
    }


def correct(
    name: str, train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor
) -> Tensor:
    """Whether a probe finds the label: codes [N, Z] → 0 or 1 per image of the test split."""
    with threadpool_limits(1):  # with other sums its iterations end in other bits
        PROBES[name].fit(train_mu.double().numpy(), train_labels.numpy())
        predicted = PROBES[name].predict(mu.double().numpy())
    return torch.from_numpy(predicted == labels.numpy()).float()


def _log_aggregate(posterior: Posterior, z: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """(log q(z), Σ_j log q(z_j)), each [B] in float64; z [B, Z] was drawn for the images `own`."""
    log_n = math.log(len(posterior.mu))
    log_q = torch.zeros(len(z), len(posterior.mu), dtype=z.dtype)
    marginals = torch.zeros(len(z), dtype=torch.float64)
    for z_j, mu_j, log_var_j in zip(z.T, posterior.mu.T, posterior.log_var.T, strict=True):
        log_q_j = log_normal(z_j.unsqueeze(1), mu_j.contiguous(), log_var_j.contiguous())
        marginals += _log_sum(log_q_j, own) - log_n
        log_q += log_q_j
    return _log_sum(log_q, own) - log_n, marginals


def _log_sum(log_q: Tensor, own: Tensor) -> Tensor:
    """Log Σ_n q_n of each row: [B, N] → [B], in float64.

    log_softmax is log q − log Σ q, and takes a third of the time of logsumexp. It is read at the
    image that z came from, where neither term is large.
    """
    at = own.unsqueeze(1)
    log_own, log_share = log_q.gather(1, at), log_q.log_softmax(dim=1).gather(1, at)
    return (log_own.double() - log_share.double()).squeeze(1)
