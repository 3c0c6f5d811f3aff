"""−log p(x) by importance sampling: p(x) = E_{z ~ q}[w], w = p(x|z) p(z) / q(z|x).

−log of the mean of K weights is an upper bound of −log p(x) in expectation, which falls towards it as K grows
(Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders", theorem 1); K = 1 is −ELBO. Any q with the
posterior's support will do for it. The encoder's, which is fitted to lie inside the posterior, seldom draws the z that
weigh most: drawn from with its σ widened, and weighted by that density, far fewer draws give a tighter bound.

Every image has noise of its own, (seed, purpose, image): what is found for it depends neither on how the images are
split into chunks nor on which others there are.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.model.vae import VAE
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, standard_normal

# Draws decoded at a time: on a CPU about what its caches hold, on a GPU enough to keep it busy.
ROWS = {"cpu": 512, "cuda": 1 << 17, "mps": 1 << 16}
FACTORS = 64  # of ½ or more are multiplied before the logarithm: 2^−64 is far within float32

Recon = Callable[[Tensor, Tensor], Tensor]


def bernoulli_recon_of_draws(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x|z_k), summed over pixels, for K draws of z an image: logits [B, K, D], x [B, D] → [B, K], in nats.

    Logits [1, K, D] are those of draws that all images share. Equal to `bernoulli_recon`, in about half its time:
    Σ max(l, 0) − l x − log Π sigmoid |l|, where the logarithm is taken of products of FACTORS sigmoids, each in [½, 1].
    """
    linear = logits.clamp(min=0).sum(dim=-1) - torch.einsum("bkd,bd->bk", logits, x)
    product = logits.abs().sigmoid_()
    factors = 1
    while product.shape[-1] % 2 == 0 and factors < FACTORS:
        first, second = product.chunk(2, dim=-1)
        product, factors = first * second, 2 * factors
    return linear - product.log().sum(dim=-1)


@torch.no_grad()
def log_weights(
    model: VAE,
    x: Tensor,
    num_samples: int,
    *,
    scale: float = 1.0,
    first: int = 0,
    recon: Recon = bernoulli_recon_of_draws,
) -> Tensor:
    """Log w for `num_samples` draws of z an image from N(μ, (scale σ)²): x [N, D] in [0, 1] → [N, K], on the CPU.

    log w = log p(x|z) + Σ_j [log scale σ_j + ½ ε_j² − ½ z_j²] for z = μ + scale σ ε; the (2π)^½ of the prior and of q
    cancel. `x` is on the model's device and of its type; its images are the `first`, … of those that have noise of
    their own. Raises ValueError where there is nothing to draw.
    """
    if num_samples < 1 or not scale > 0:
        raise ValueError(f"at least one draw, from a scale above 0 (got {num_samples}, {scale})")
    found = []
    step = max(1, rows(x) // num_samples)
    for start in range(0, len(x), step):
        batch = x[start : start + step]
        mu, log_var = (half.unsqueeze(1) for half in model.encode(batch))
        eps = torch.stack([noise(num_samples, model.z_dim, first + start + i) for i in range(len(batch))]).to(mu)
        z = mu + scale * torch.exp(0.5 * log_var) * eps
        log_ratio = (math.log(scale) + 0.5 * (log_var + eps.square() - z.square())).sum(dim=-1)
        draws = [log_ratio[:, some] - recon(model.decode(z[:, some]), batch) for some in _slices(num_samples, rows(x))]
        found.append(torch.cat(draws, dim=1).cpu())
    return torch.cat(found)


@torch.no_grad()
def prior_log_weights(model: VAE, x: Tensor, num_samples: int, *, recon: Recon = bernoulli_recon_of_draws) -> Tensor:
    """Log p(x|z) for `num_samples` draws of z from the prior, the same for all images: x [N, D] → [N, K], on the CPU.

    Naive Monte Carlo: right in expectation and useless in practice, for next to no z drawn without looking at x
    explains it.
    """
    z = standard_normal((num_samples, model.z_dim), PROTOCOL_SEED, "prior").to(x)
    draws = [recon(model.decode(z[some]).unsqueeze(0), x).neg_().cpu() for some in _slices(num_samples, rows(x))]
    return torch.cat(draws, dim=1)


def _slices(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, start + step)


def neg_log_mean(log_w: Tensor, num_samples: int | None = None) -> Tensor:
    """The bound of −log p(x) from K weights: log w [N, M] → [N], in nats; K is M unless told.

    With K less than M it is the mean over the M // K groups of K weights: the same expectation, less noise.
    Raises ValueError for any K but 1 … M.
    """
    k = log_w.shape[1] if num_samples is None else num_samples
    if not 1 <= k <= log_w.shape[1]:
        raise ValueError(f"between one and all of the {log_w.shape[1]} weights (got {k})")
    groups = log_w[:, : log_w.shape[1] // k * k].unflatten(1, (-1, k))
    bound: Tensor = (math.log(k) - groups.logsumexp(dim=-1)).mean(dim=-1)
    return bound


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Σ w)² / Σ w² in 1 … K: log w [N, K] → [N]                   (Kong 1992; Owen, "Monte Carlo theory", ch. 9)."""
    w = (log_w - log_w.amax(dim=-1, keepdim=True)).exp()
    return w.sum(dim=-1).square() / w.square().sum(dim=-1)


def noise(num_samples: int, z_dim: int, image: int) -> Tensor:
    """ε [K, Z] ~ N(0, I) of one image, whatever the seed of the training."""
    return torch.randn(num_samples, z_dim, generator=generator(PROTOCOL_SEED, "importance", image))


def rows(x: Tensor) -> int:
    """How many draws are decoded at a time on the device of `x`."""
    return ROWS[x.device.type]
