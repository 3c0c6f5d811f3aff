"""−log p(x) by importance sampling: p(x) = E_{z ~ q}[w], w = p(x|z) p(z) / q(z|x).

−log of the mean of K weights is an upper bound of −log p(x) in expectation, which falls towards it
as K grows (Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders", theorem 1);
K = 1 is −ELBO. Any q with the posterior's support is valid. The encoder's q is fitted to lie inside
the posterior and seldom draws the z of largest weight: drawn from q with a widened σ, and weighted
by that density, far fewer draws give a tighter bound.

The label of a conditional model is drawn too, from its prior: p(x) = Σ_y p(x|y) / C, and the weight
of a draw is that of z given its label, w = p(x|z, y) p(z) / q(z|x, y).
"""

import math
from itertools import product

import torch
from torch import Tensor

from pipeline.evaluation.reconstruction import Recon
from pipeline.model.network import Batch, Posterior
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, standard_normal, uniform

# Draws that are decoded at a time: on a CPU what its caches hold, on a GPU enough to keep it busy.
ROWS = {"cpu": 512, "cuda": 1 << 17, "mps": 1 << 16}
PRIOR_ROWS, PRIOR_IMAGES = 512, 50  # draws from the prior and images that are compared at a time


def noise(num_samples: int, z_dim: int, images: range) -> Tensor:
    """ε [N, K, Z] ~ N(0, I) for the images with these numbers; each has its own, fixed noise."""
    eps = torch.empty(len(images), num_samples, z_dim)
    for image, own in zip(images, eps, strict=True):
        torch.randn(own.shape, generator=generator(PROTOCOL_SEED, "importance", image), out=own)
    return eps


def draw_labels(model: VAE, batch: Batch, num_samples: int, images: range) -> Batch:
    """For a conditional model: the batch with labels y [N, K] of K draws, all C classes in turn.

    The first is uniform, by the number of the image. So is each by itself, and the bound is valid
    for any K; among any C neighbors each class is drawn once, which leaves less variance than
    labels that are independent.
    """
    classes = model.architecture.num_classes
    if classes == 0:
        return batch
    generators = [generator(PROTOCOL_SEED, "importance/label", image) for image in images]
    first = torch.stack([torch.randint(classes, (1,), generator=own) for own in generators])
    y = (first + torch.arange(num_samples)) % classes
    return batch._replace(y=y.to(batch.x.device))


@torch.no_grad()
def log_weights(
    model: VAE, batch: Batch, eps: Tensor, *recons: Recon, scale: float = 1
) -> list[Tensor]:
    """Log w for z = μ + scale σ ε ~ N(μ, (scale σ)²): ε [N, K, Z] → [N, K] per Recon.

    log w = log p(x|z) + log p(z) − log q(z). A conditional model needs the labels of `draw_labels`.
    """
    mu, log_var = _encode(model, batch)
    z = mu + scale * torch.exp(0.5 * log_var) * eps
    log_ratio = model.p_z().log_ratio(z, log_var, eps, scale)
    log_w = [log_ratio.clone() for _ in recons]
    num_images, num_samples = log_ratio.shape
    rows = ROWS[z.device.type]
    step = max(1, rows // num_samples)
    y = None if batch.y is None else batch.y.view(num_images, -1).expand(-1, num_samples)
    for first, start in product(range(0, num_images, step), range(0, num_samples, rows)):
        images = slice(first, first + step)
        draws = images, slice(start, start + rows)
        outputs = model.decode(z[draws], None if y is None else y[draws])
        for values, recon in zip(log_w, recons, strict=True):
            values[draws] -= recon(outputs, batch.x[images])
    return log_w


def _encode(model: VAE, batch: Batch) -> Posterior:
    """q(z|x) [N, 1, Z], or q(z|x, y) [N, K, Z] for labels y [N, K]: once per class."""
    if batch.y is None or batch.y.dim() == 1:
        return Posterior(*(part.unsqueeze(1) for part in model.encode(batch)))
    classes = range(model.architecture.num_classes)
    each = [model.encode(Batch(batch.x, torch.full_like(batch.y[:, 0], y))) for y in classes]
    own = batch.y.unsqueeze(-1).expand(-1, -1, model.z_dim)
    return Posterior(*(torch.stack(part, dim=1).gather(1, own) for part in zip(*each, strict=True)))


@torch.no_grad()
def prior_log_weights(model: VAE, batch: Batch, num_samples: int, recon: Recon) -> Tensor:
    """Log p(x|z) for z ~ p(z), the same for all images: [N, K], on the CPU.

    Naive Monte Carlo: unbiased, and useless in practice: almost no sample from the prior explains a
    given x. The labels, if any, are those of the first image.
    """
    eps = standard_normal((num_samples, model.z_dim), PROTOCOL_SEED, "prior").to(batch.x)
    z = model.p_z().sample(eps, uniform(num_samples, PROTOCOL_SEED, "prior").to(batch.x))
    y = None if batch.y is None else batch.y[:1].view(1, -1).expand(-1, num_samples)
    columns = []
    for start in range(0, num_samples, PRIOR_ROWS):
        draws = slice(start, start + PRIOR_ROWS)
        outputs = model.decode(z[None, draws], None if y is None else y[:, draws])
        recons = [recon(outputs, images) for images in batch.x.split(PRIOR_IMAGES)]
        columns.append(torch.cat(recons).neg().cpu())
    return torch.cat(columns, dim=1)


def neg_log_mean(log_w: Tensor, k: int) -> Tensor:
    """The bound of −log p(x) from K weights: log w [N, M] → [N], in nats.

    With K < M it is the mean over the M // K groups of K weights: less noise, the same expectation.
    """
    groups = log_w[:, : log_w.shape[1] // k * k].unflatten(1, (-1, k))
    return (math.log(k) - groups.logsumexp(dim=-1)).mean(dim=-1)


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Σ w)² / Σ w², from 1 to K: log w [N, K] → [N] (Kong 1992; Owen, "Monte Carlo", ch. 9)."""
    w = (log_w - log_w.amax(dim=-1, keepdim=True)).exp()
    return w.sum(dim=-1).square() / w.square().sum(dim=-1)
