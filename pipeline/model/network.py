"""Encoder and decoder networks by name. A new one is a class with the methods of `Network` and a
registry entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from pipeline.data.datasets import Split, to_unit

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU,
}  # fmt: skip
CHANNELS = 32  # of the first convolution


class Batch(NamedTuple):
    """Images as the model sees them, D = height · width, and labels for conditional networks."""

    x: Tensor  # [B, D], floats in [0, 1]
    y: Tensor | None = None  # [B], int64; None if the dataset has no labels


def to_batch(split: Split, device: torch.device) -> Batch:
    """All images of a split as a batch on `device`."""
    return Batch(to_unit(split.images.to(device)), split.labels.to(device).long())


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
    """An nn.Module with an encoder and a decoder.

    If architecture.num_classes is not 0, both depend on the label: q(z|x, y) and p(x|z, y)
    (Kingma et al. 2014, "Semi-supervised learning with deep generative models", model M2).
    """

    def encode(self, batch: Batch) -> Posterior:
        """Return the parameters of q(z|x)."""

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Map z [B, Z] and labels y [B] to [B, O]; the likelihood sets O and its meaning."""


class MLP(nn.Module):
    """D → h_dim (h_layers times) → Z, and the same in reverse order back to O.

    A label is one-hot, beside x and beside z.
    """

    def __init__(self, architecture: Architecture, num_outputs: int) -> None:
        super().__init__()
        hidden = [architecture.h_dim] * architecture.h_layers
        activation = ACTIVATIONS[architecture.activation]
        # One layer for μ and log σ²: half the kernel launches, the same function.
        num_pixels, z_dim = architecture.num_pixels, architecture.z_dim
        self.num_classes = architecture.num_classes
        self.encoder = _perceptron([num_pixels + self.num_classes, *hidden, 2 * z_dim], activation)
        self.decoder = _perceptron([z_dim + self.num_classes, *hidden, num_outputs], activation)

    def encode(self, batch: Batch) -> Posterior:
        """See Network."""
        inputs = beside(batch.x, batch.y, self.num_classes)
        return Posterior(*self.encoder(inputs).chunk(2, dim=-1))

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """See Network."""
        return self.decoder(beside(z, y, self.num_classes))


class Convolutional(nn.Module):
    """h_layers convolutions of stride 2, an MLP of one hidden layer, and the same back to O.

    A convolution halves height and width, rounded up. The first has 32 channels, each further one
    twice as many.
    """

    def __init__(self, architecture: Architecture, num_outputs: int) -> None:
        super().__init__()
        activation = ACTIVATIONS[architecture.activation]
        height, width = architecture.image_shape
        down: list[nn.Module] = [nn.Unflatten(-1, (1, height, width))]
        up: list[nn.Module] = [nn.Flatten()]  # last layer first
        n_in, n_out = 1, num_outputs // architecture.num_pixels
        for layer in range(architecture.h_layers):
            channels = CHANNELS << layer
            even = (1 - height % 2, 1 - width % 2)
            down += [nn.Conv2d(n_in, channels, 3, 2, 1), activation()]
            up += [nn.ConvTranspose2d(channels, n_out, 3, 2, 1, output_padding=even), activation()]
            height, width = (height + 1) // 2, (width + 1) // 2
            n_in = n_out = channels
        up.append(nn.Unflatten(-1, (n_in, height, width)))
        inner = replace(architecture, image_shape=(n_in * height, width), h_layers=1)
        self.down = nn.Sequential(*down, nn.Flatten())
        self.inner = MLP(inner, inner.num_pixels)
        self.up = nn.Sequential(*reversed(up))

    def encode(self, batch: Batch) -> Posterior:
        """See Network."""
        return self.inner.encode(Batch(self.down(batch.x), batch.y))

    def decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """See Network."""
        return self.up(self.inner.decode(z, y))


# Builds a network for an architecture with O decoder outputs.
NETWORKS: dict[str, Callable[[Architecture, int], Network]] = {"mlp": MLP, "conv": Convolutional}


def beside(values: Tensor, y: Tensor | None, num_classes: int) -> Tensor:
    """Values [B, F] and √F times the labels [B] of C classes, one-hot: [B, F + C].

    Values alone if C = 0. With √F the label weighs as much as F values of N(0, 1) in a layer as
    PyTorch initializes it, and not as one of them: it is used from the first epoch.
    """
    if num_classes == 0:
        return values
    # F.one_hot reads y on the CPU, which a CUDA graph cannot contain.
    one_hot = cast(Tensor, y).unsqueeze(-1) == torch.arange(num_classes, device=values.device)
    return torch.cat([values, math.sqrt(values.shape[-1]) * one_hot.to(values.dtype)], dim=-1)


def _perceptron(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])
