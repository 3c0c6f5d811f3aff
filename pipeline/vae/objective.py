"""The evidence lower bound: −ELBO = recon + KL ≥ −log p(x), per image, in nats.

log p(x) ≥ E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z))        (Kingma & Welling 2014, eq. 3)
"""

from typing import NamedTuple

from torch import Tensor

from pipeline.vae.likelihood import bernoulli_recon
from pipeline.vae.model import VAE, reparameterize


class ElboTerms(NamedTuple):
    """The two halves of −ELBO for a batch, each [B], in nats."""

    recon: Tensor
    kl: Tensor

    @property
    def neg_elbo(self) -> Tensor:
        """−ELBO, [B]: an upper bound of −log p(x), in expectation over ε."""
        return self.recon + self.kl


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)) in closed form: μ and log σ² [B, Z] → [B], in nats.

    ½ Σ (σ² + μ² − 1 − log σ²)                                     (Kingma & Welling 2014, appendix B)
    """
    return 0.5 * (log_var.exp() + mu.square() - 1 - log_var).sum(dim=-1)


def elbo_terms(model: VAE, x: Tensor, eps: Tensor) -> ElboTerms:
    """One-sample estimate of −ELBO: x [B, D] in [0, 1] and ε [B, Z] ~ N(0, I) → terms [B]."""
    mu, log_var = model.encode(x)
    logits = model.decode(reparameterize(mu, log_var, eps))
    return ElboTerms(recon=bernoulli_recon(logits, x), kl=gaussian_kl(mu, log_var))
