"""−ELBO = recon + KL, per image, in nats, and what training minimizes, by name.

log p(x) ≥ E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z))        (Kingma & Welling 2014, eq. 3)

Validation and test measure −ELBO, whatever is trained.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.network import Batch, Posterior
from pipeline.model.vae import VAE


class ElboTerms(NamedTuple):
    """The terms of −ELBO for a batch, each [B], in nats.

    A new field gets its own column in history.csv.
    """

    recon: Tensor
    kl: Tensor
    loss: Tensor  # what training minimizes

    @property
    def neg_elbo(self) -> Tensor:
        """−ELBO, [B]: what is reported. An upper bound of −log p(x), in expectation over ε."""
        return self.recon + self.kl


def elbo_terms(
    model: VAE, batch: Batch, eps: Tensor, beta: Tensor | float = 1.0, free_bits: float = 0.0
) -> ElboTerms:
    """Estimate of −ELBO from S draws of z per image: ε [B, S, Z] ~ N(0, I).

    The loss has β · KL (Higgins et al. 2017, "β-VAE", eq. 4). With free bits a dimension costs at
    least that much, so that it is not given up (Kingma et al. 2016, "IAF", appendix C.8).
    """
    posterior, z = draw(model, batch, eps)
    recon = model.neg_log_prob(z, batch).mean(dim=1)
    prior = model.p_z()
    kl = cost = prior.kl(posterior, z, eps)
    if free_bits:
        per_dimension = prior.kl_per_dimension(posterior, z, eps)
        # Made on the device: a CUDA graph cannot contain a copy from the CPU.
        floor = per_dimension.new_full((), free_bits)
        cost = torch.where(per_dimension.mean(dim=0) > floor, per_dimension, floor).sum(dim=-1)
    constant = model.label_nats
    return ElboTerms(recon, kl + constant, loss=recon + beta * cost + constant)


def iwae_terms(model: VAE, batch: Batch, eps: Tensor) -> ElboTerms:
    """−log of the mean of S importance weights (Burda et al. 2016, eq. 8); ε [B, S, Z]."""
    posterior, z = draw(model, batch, eps)
    recon = model.neg_log_prob(z, batch)
    log_ratio = model.p_z().log_ratio(z, posterior.log_var.unsqueeze(1), eps) - model.label_nats
    return _iwae(recon, log_ratio)


def dreg_terms(model: VAE, batch: Batch, eps: Tensor) -> ElboTerms:
    """The same bound with the doubly reparameterized gradient (Tucker et al. 2019, eq. 8).

    With normalized weights w, the gradient of the encoder is that of −Σ w² log w through z alone;
    that of decoder and prior is the one of `iwae_terms`.
    """
    posterior, z = draw(model, batch, eps)
    recon = model.neg_log_prob(z, batch)
    mu, log_var = (part.detach().unsqueeze(1) for part in posterior)
    own_eps = (z - mu) * torch.exp(-0.5 * log_var)  # equal to ε, as a function of z
    log_ratio = model.p_z().log_ratio(z, log_var, own_eps) - model.label_nats
    terms = _iwae(recon, log_ratio)
    if z.requires_grad:
        weights = (log_ratio - recon).detach().softmax(dim=1).unsqueeze(-1)
        z.register_hook(lambda gradient: weights * gradient)
    return terms


IMPORTANCE_WEIGHTED = {"iwae": iwae_terms, "dreg": dreg_terms}


@dataclass(frozen=True)
class Objective:
    """What training minimizes, by parameters of params.yaml. The default is −ELBO."""

    objective: str = "elbo"  # or a key of IMPORTANCE_WEIGHTED
    num_samples: int = 1  # S, draws of z per image
    beta: float = 1.0  # weight of the KL after the warm-up
    warmup_epochs: int = 0  # in which the weight rises linearly
    free_bits: float = 0.0  # nats of KL per dimension that cost nothing

    def kl_weight(self, epoch: int) -> float:
        """β, or its share in an epoch of the warm-up; the first epoch is 1."""
        return self.beta * min(1.0, epoch / (self.warmup_epochs + 1))

    def __call__(self, model: VAE, batch: Batch, eps: Tensor, kl_weight: Tensor) -> ElboTerms:
        """The terms for a training step: ε [B, S, Z]."""
        if self.objective == "elbo":
            return elbo_terms(model, batch, eps, kl_weight, self.free_bits)
        return IMPORTANCE_WEIGHTED[self.objective](model, batch, eps)


NEG_ELBO = Objective()


def draw(model: VAE, batch: Batch, eps: Tensor) -> tuple[Posterior, Tensor]:
    """q(z|x), and S draws of z for each image: ε [B, S, Z] → z [B, S, Z]."""
    posterior = model.encode(batch)
    return posterior, reparameterize(Posterior(*(part.unsqueeze(1) for part in posterior)), eps)


def reparameterize(posterior: Posterior, eps: Tensor) -> Tensor:
    """Z = μ + σ ε, ε ~ N(0, I): a sample of q(z|x) that passes gradients to μ and σ."""
    return posterior.mu + torch.exp(0.5 * posterior.log_var) * eps


def _iwae(recon: Tensor, log_ratio: Tensor) -> ElboTerms:
    """From −log p(x|z) and log p(z) − log q(z|x), both [B, S]."""
    bound = math.log(recon.shape[1]) - (log_ratio - recon).logsumexp(dim=1)
    return ElboTerms(recon.mean(dim=1), -log_ratio.mean(dim=1), loss=bound)
