"""Encoder and decoder networks by name. A new one is a class with the methods of `Network` and a
registry entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.data.datasets import to_unit

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU,
}  # fmt: skip


class Batch(NamedTuple):
    """Images as the model sees them, D = height · width, and labels for conditional networks."""

    x: Tensor  # [B, D], floats in [0, 1]
    y: Tensor | None = None  # [B], int64; None if the dataset has no labels


def to_batch(images: Tensor, labels: Tensor, device: torch.device) -> Batch:
    """Images uint8 [B, D] and labels [B] of a split, as a batch on `device`."""
    return Batch(to_unit(images.to(device)), labels.to(device).long())


class Posterior(NamedTuple):
    """q(z|x) = N(μ, diag σ²)."""

    mu: Tensor  # [B, Z]
    log_var: Tensor  # [B, Z]


@dataclass(frozen=True)
class Architecture:
    """Everything that is needed to build the model; stored in the model file."""

    network: str
    likelihood: str
    image_shape: tuple[int, int]  # height, width
    z_dim: int
    h_dim: int
    h_layers: int
    activation: str
    prior: str = "normal"
    prior_components: int = 10
    sigma: str | float = "learned"  # of a Gaussian likelihood
    num_classes: int = 0  # of the labels that the network is given; 0: none

    @property
    def num_pixels(self) -> int:
        """D."""
        return math.prod(self.image_shape)


class Network(Protocol):
    """An nn.Module with an encoder and a decoder."""

    def encode(self, batch: Batch) -> Posterior:
        """Return the parameters of q(z|x)."""

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Map z [B, Z] and labels y [B] to [B, O]; the likelihood sets O and its meaning."""


class MLP(nn.Module):
    """D → h_dim (h_layers times) → Z, and the same in reverse order back to O."""

    def __init__(self, architecture: Architecture, num_outputs: int) -> None:
        super().__init__()
        hidden = [architecture.h_dim] * architecture.h_layers
        activation = ACTIVATIONS[architecture.activation]
        # One layer for μ and log σ²: half the kernel launches, the same function.
        num_pixels, z_dim = architecture.num_pixels, architecture.z_dim
        self.encoder = _perceptron([num_pixels, *hidden, 2 * z_dim], activation)
        self.decoder = _perceptron([z_dim, *hidden, num_outputs], activation)

    def encode(self, batch: Batch) -> Posterior:
        """See Network."""
        return Posterior(*self.encoder(batch.x).chunk(2, dim=-1))

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """See Network."""
        outputs: Tensor = self.decoder(z)
        return outputs


# Builds a network for an architecture with O decoder outputs.
NETWORKS: dict[str, Callable[[Architecture, int], Network]] = {"mlp": MLP}


def _perceptron(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])
