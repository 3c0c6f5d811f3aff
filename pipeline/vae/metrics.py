"""Measuring a VAE on images that it was not trained on: each number per image, so that runs can be compared in pairs.

The noise is always the same, and one image's depends on no other image; how the images are split into chunks changes
no number.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.vae.binarization import binarize, clamped_recon_of_draws
from pipeline.vae.importance import effective_sample_size, log_weights, neg_log_mean, prior_log_weights
from pipeline.vae.likelihood import bernoulli_mean, bernoulli_recon
from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE, reparameterize
from pipeline.vae.objective import gaussian_kl
from pipeline.vae.randomness import PROTOCOL_SEED, standard_normal

BATCH = 1000
STEP = 200  # images between two records of `evidence`


class Elbo(NamedTuple):
    """The halves of −ELBO in nats, the mean squared error of a pixel, and q(z|x), of each image, on the CPU."""

    recon: Tensor  # [N]
    kl: Tensor  # [N]
    mse: Tensor  # [N]
    mu: Tensor  # [N, Z]
    log_var: Tensor  # [N, Z]


class Evidence(NamedTuple):
    """Bounds of −log p(x) of each image, in nats, from K draws of z: [N, len(ks)] for the K of `sample_sizes`."""

    widened: Tensor  # drawn from q with its σ widened
    plain: Tensor  # drawn from q: −L_K, the bound of IWAE
    prior: Tensor  # drawn from p(z): naive Monte Carlo
    binarized: Tensor  # [N]: of −log p(b) for the fixed binarization b of x, from all draws, widened
    ess: Tensor  # [N]: effective sample size of all the widened draws


@torch.no_grad()
def elbo(model: VAE, images: Tensor) -> Elbo:
    """−ELBO of each of `images`, uint8 [N, D].

    One z ~ q(z|x) is *sampled* for an image. At z = μ it would read about 10 nats too good: it is no bound there.
    """
    device = next(model.parameters()).device
    eps = evaluation_noise(len(images), model.z_dim).to(device)
    rows = []
    for batch, batch_eps in zip(images.split(BATCH), eps.split(BATCH), strict=True):
        x = to_unit(batch.to(device))
        mu, log_var = model.encode(x)
        logits = model.decode(reparameterize(mu, log_var, batch_eps))
        mse = (bernoulli_mean(logits) - x).square().mean(dim=-1)
        rows.append((bernoulli_recon(logits, x), gaussian_kl(mu, log_var), mse, mu, log_var))
    return Elbo(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def evaluation_noise(n: int, z_dim: int) -> Tensor:
    """ε [n, z_dim] of the one z an image that −ELBO is measured with."""
    return standard_normal((n, z_dim), PROTOCOL_SEED, "evaluate")


def sample_sizes(num_samples: int) -> list[int]:
    """1, 10, 100, … below `num_samples`, and that: where the bound is read on its way up."""
    return [*(10**power for power in range(9) if 10**power < num_samples), num_samples]


def evidence(model: VAE, images: Tensor, num_samples: int, scale: float) -> Iterator[Evidence]:
    """−log p(x) of `images`, uint8 [N, D], by importance sampling, STEP of them a record."""
    device = next(model.parameters()).device
    ks = sample_sizes(num_samples)
    binary = binarize(images)
    for start in range(0, len(images), STEP):
        x, b = (to_unit(some[start : start + STEP].to(device)) for some in (images, binary))
        widened = log_weights(model, x, num_samples, scale=scale, first=start)
        plain = log_weights(model, x, num_samples, first=start) if scale != 1 else widened
        prior = prior_log_weights(model, x, num_samples)
        binarized = log_weights(model, b, num_samples, scale=scale, first=start, recon=clamped_recon_of_draws)
        yield Evidence(
            widened=_bounds(widened, ks),
            plain=_bounds(plain, ks),
            prior=_bounds(prior, ks),
            binarized=neg_log_mean(binarized),
            ess=effective_sample_size(widened),
        )


def _bounds(log_w: Tensor, ks: list[int]) -> Tensor:
    return torch.stack([neg_log_mean(log_w, k) for k in ks], dim=1)


def summary(per_image: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each quantity, [N], and as NAME_se the standard error of that mean over the images."""
    found = {}
    for name, values in per_image.items():
        # NumPy adds in float64 and on one thread: the same bits whatever the number of threads.
        numbers = values.double().numpy()
        found[name] = float(numbers.mean())
        found[f"{name}_se"] = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return found
