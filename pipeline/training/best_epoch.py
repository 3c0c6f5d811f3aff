"""Early stopping: the weights of the epoch with the best validation so far."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.model.vae import VAE

NUMBERS = "best"  # [epoch, val/neg_elbo]
WEIGHTS = "best.model."


class BestEpoch:
    """Keeps the weights and buffers of `model` after its best epoch.

    patience: epochs without a better one after which the training stops. With 0 it never stops, and
    nothing is kept.
    warmup_epochs: the first epochs, which do not count: their KL weight is not the final one.
    state: the tensors for a checkpoint, by name.
    """

    def __init__(self, model: VAE, patience: int = 0, warmup_epochs: int = 0) -> None:
        self.model = model
        self.patience = patience
        self.warmup_epochs = warmup_epochs
        self.state = {NUMBERS: torch.tensor([0, math.inf], dtype=torch.float64)}

    @property
    def epoch(self) -> int:
        """The number of the best epoch, 0 before the first."""
        return int(self.state[NUMBERS][0])

    def update(self, epoch: int, neg_elbo: float) -> None:
        """Keep the present weights if they are better than those of every epoch before."""
        counts = self.patience > 0 and epoch > self.warmup_epochs
        if counts and neg_elbo < self.state[NUMBERS][1]:
            weights = self.model.state_dict()
            self.state = {WEIGHTS + name: tensor.clone() for name, tensor in weights.items()}
            self.state[NUMBERS] = torch.tensor([epoch, neg_elbo], dtype=torch.float64)

    def stops(self, epoch: int) -> bool:
        """Whether the training stops after `epoch`."""
        return 0 < self.patience <= epoch - max(self.epoch, self.warmup_epochs)

    def load(self) -> None:
        """Give the model the weights of its best epoch."""
        if self.patience:
            names = self.model.state_dict()
            self.model.load_state_dict({name: self.state[WEIGHTS + name] for name in names})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state from the tensors of a checkpoint."""
        self.state = {name: tensors[name] for name in tensors if name.startswith(NUMBERS)}
