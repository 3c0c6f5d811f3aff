"""−log p(x) by importance sampling: p(x) = E_{z ~ q}[w], w = p(x|z) p(z) / q(z|x).

−log of the mean of K weights is an upper bound of −log p(x) in expectation, which falls towards it
as K grows (Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders", theorem 1);
K = 1 is −ELBO. Any q with the posterior's support is valid. The encoder's q is fitted to lie inside
the posterior and seldom draws the z of largest weight: drawn from q with a widened σ, and weighted
by that density, far fewer draws give a tighter bound.
"""

import math

import torch
from torch import Tensor

from pipeline.evaluation.reconstruction import Recon
from pipeline.model.network import Batch
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, standard_normal, uniform

# Draws that are decoded at a time: on a CPU what its caches hold, on a GPU enough to keep it busy.
ROWS = {"cpu": 512, "cuda": 1 << 17, "mps": 1 << 16}
PRIOR_ROWS, PRIOR_IMAGES = 512, 50  # draws from the prior and images that are compared at a time


def noise(num_samples: int, z_dim: int, images: range) -> Tensor:
    """ε [N, K, Z] ~ N(0, I) for the images with these numbers; each has its own, fixed noise."""
    generators = [generator(PROTOCOL_SEED, "importance", image) for image in images]
    return torch.stack([torch.randn(num_samples, z_dim, generator=own) for own in generators])


@torch.no_grad()
def log_weights(model: VAE, batch: Batch, eps: Tensor, recon: Recon, scale: float = 1) -> Tensor:
    """Log w for z = μ + scale σ ε ~ N(μ, (scale σ)²): ε [N, K, Z] → [N, K], on the CPU.

    log w = log p(x|z) + log p(z) − log q(z).
    """
    mu, log_var = (part.unsqueeze(1) for part in model.encode(batch))
    z = mu + scale * torch.exp(0.5 * log_var) * eps
    log_ratio = model.p_z().log_ratio(z, log_var, eps, scale)
    num_images, num_samples = log_ratio.shape
    rows = ROWS[z.device.type]
    step = max(1, rows // num_samples)
    for first in range(0, num_images, step):
        images = slice(first, first + step)
        y = None if batch.y is None else batch.y[images]
        draws = z[images].split(rows, dim=1)
        recons = [recon(model.decode(some, y), batch.x[images]) for some in draws]
        log_ratio[images] -= torch.cat(recons, dim=1)
    return log_ratio.cpu()


@torch.no_grad()
def prior_log_weights(model: VAE, batch: Batch, num_samples: int, recon: Recon) -> Tensor:
    """Log p(x|z) for z ~ p(z), the same for all images: [N, K], on the CPU. One label for all.

    Naive Monte Carlo: unbiased, and useless in practice: almost no sample from the prior explains a
    given x.
    """
    eps = standard_normal((num_samples, model.z_dim), PROTOCOL_SEED, "prior").to(batch.x)
    z = model.p_z().sample(eps, uniform(num_samples, PROTOCOL_SEED, "prior").to(batch.x))
    columns = []
    for draws in z.unsqueeze(0).split(PRIOR_ROWS, dim=1):
        outputs = model.decode(draws, None if batch.y is None else batch.y[:1])
        recons = [recon(outputs, images) for images in batch.x.split(PRIOR_IMAGES)]
        columns.append(torch.cat(recons).neg().cpu())
    return torch.cat(columns, dim=1)


def neg_log_mean(log_w: Tensor, k: int) -> Tensor:
    """The bound of −log p(x) from K weights: log w [N, M] → [N], in nats.

    With K < M it is the mean over the M // K groups of K weights: less noise, the same expectation.
    """
    groups = log_w[:, : log_w.shape[1] // k * k].unflatten(1, (-1, k))
    bound: Tensor = (math.log(k) - groups.logsumexp(dim=-1)).mean(dim=-1)
    return bound


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Σ w)² / Σ w², from 1 to K: log w [N, K] → [N] (Kong 1992; Owen, "Monte Carlo", ch. 9)."""
    w = (log_w - log_w.amax(dim=-1, keepdim=True)).exp()
    return w.sum(dim=-1).square() / w.square().sum(dim=-1)
