"""−ELBO = recon + KL, per image, in nats, and the loss. Training, validation and test call it.

log p(x) ≥ E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z))        (Kingma & Welling 2014, eq. 3)
"""

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

    @property
    def neg_elbo(self) -> Tensor:
        """−ELBO, [B]: what is reported. An upper bound of −log p(x), in expectation over ε."""
        return self.recon + self.kl

    @property
    def loss(self) -> Tensor:
        """What training minimizes, [B]."""
        return self.neg_elbo


def elbo_terms(model: VAE, batch: Batch, eps: Tensor) -> ElboTerms:
    """One-sample estimate of −ELBO for noise ε [B, Z] ~ N(0, I)."""
    posterior = model.encode(batch)
    outputs = model.decode(reparameterize(posterior, eps), batch.y)
    recon = model.likelihood.neg_log_prob(outputs, batch.x)
    return ElboTerms(recon, kl=gaussian_kl(*posterior))


def reparameterize(posterior: Posterior, eps: Tensor) -> Tensor:
    """Z = μ + σ ε [B, Z], ε ~ N(0, I): a sample of q(z|x) that passes gradients to μ and σ."""
    return posterior.mu + torch.exp(0.5 * posterior.log_var) * eps


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)) in closed form: μ and log σ² [B, Z] → [B], in nats.

    ½ Σ (σ² + μ² − 1 − log σ²)                                (Kingma & Welling 2014, appendix B)
    """
    return 0.5 * (log_var.exp() + mu.square() - 1 - log_var).sum(dim=-1)
