"""The gradient of the loss by autograd of model/objective.py, which defines what is trained."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.model.network import Batch
from pipeline.model.objective import NEG_ELBO, ElboTerms, Objective
from pipeline.model.vae import VAE

MAX_THREADS = 2  # CPU threads that a training makes use of


class Gradient(Protocol):
    """Computes the gradients of a model.

    They are those of the sum of the loss over a batch, as in the original script, and not of the
    mean: Adam's epsilon then matters less.
    """

    max_threads: int  # CPU threads up to which it gives the same bits
    kl_weight: Tensor  # on the device, so that a CUDA graph reads what it is set to

    def arrange(self, x: Tensor) -> Tensor:
        """Return images [N, D] as `__call__` and `terms` take them."""

    def __call__(self, batch: Batch, eps: Tensor) -> Sequence[Tensor]:
        """Set the gradients for noise ε [B, S, Z]; return tensors [B, ...] for `terms`."""

    def terms(self, x: Tensor, outputs: Sequence[Tensor]) -> ElboTerms:
        """Return the terms for images [N, D], from what `__call__` returned for all of them."""


class AutogradGradient:
    """A Gradient for any network, likelihood and objective."""

    # With more threads the libraries for matrix products add in a different order.
    max_threads = 1

    def __init__(self, model: VAE, objective: Objective = NEG_ELBO) -> None:
        self.model = model
        self.objective = objective
        self.kl_weight = torch.ones((), device=model.device)

    def arrange(self, x: Tensor) -> Tensor:
        """See Gradient."""
        return x

    @torch.enable_grad()
    def __call__(self, batch: Batch, eps: Tensor) -> Sequence[Tensor]:
        """See Gradient."""
        self.model.zero_grad(set_to_none=True)
        terms = self.objective(self.model, batch, eps, self.kl_weight)
        terms.loss.sum().backward()
        return [term.detach() for term in terms]

    def terms(self, x: Tensor, outputs: Sequence[Tensor]) -> ElboTerms:
        """See Gradient."""
        return ElboTerms(*outputs)
