"""The matrix products of a linear layer, forwards and backwards, in two layouts of what goes through it.

Rows, [B, features], is the usual one. In columns, [features, B], the rows of a weight matrix are given to the cores by
halves, and everything that belongs to a half, its outputs, its gradient and Adam's moments of it, is written by the
core that reads it next. Where two cores share no cache, as on server CPUs made of several dies, that is worth more
than anything else: there a line that the other core has written costs as much as one from memory.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layout(Protocol):
    """How activations lie, and the three products of a layer on them; `features` is their dimension."""

    features: int

    def arrange(self, x: Tensor) -> Tensor:
        """X [B, D] in this layout."""

    def forward(self, layer: nn.Linear, a: Tensor) -> Tensor:
        """W a + b."""

    def weight_gradient(self, a: Tensor, d: Tensor, out: Tensor) -> None:
        """D aᵀ, from the layer's input and the gradient by its output."""

    def to_input(self, layer: nn.Linear, d: Tensor) -> Tensor:
        """Wᵀ d, the gradient by the layer's input."""


class Rows:
    """[B, features]."""

    features = 1

    def arrange(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def forward(self, layer: nn.Linear, a: Tensor) -> Tensor:
        """[B, in] → [B, out]."""
        return F.linear(a, layer.weight, layer.bias)

    def weight_gradient(self, a: Tensor, d: Tensor, out: Tensor) -> None:
        """[B, in], [B, out] → [out, in]."""
        torch.mm(d.t(), a, out=out)

    def to_input(self, layer: nn.Linear, d: Tensor) -> Tensor:
        """[B, out] → [B, in]."""
        return torch.mm(d, layer.weight)


class Columns:
    """[features, B], by halves of the features.

    By two whatever the number of cores: `to_input` adds over them, and other parts would give other bits.
    """

    features = 0

    def arrange(self, x: Tensor) -> Tensor:
        """[B, D] → [D, B]; in three dimensions, for a plain transposition is copied by one core alone."""
        return _halves(x.t()).contiguous().view(-1, len(x))

    def forward(self, layer: nn.Linear, a: Tensor) -> Tensor:
        """[in, B] → [out, B]."""
        weight = _halves(layer.weight)
        bias = layer.bias.view(len(weight), -1, 1)
        return torch.baddbmm(bias, weight, a.expand(len(weight), -1, -1)).view(-1, a.shape[1])

    def weight_gradient(self, a: Tensor, d: Tensor, out: Tensor) -> None:
        """[in, B], [out, B] → [out, in]."""
        out = _halves(out)
        torch.bmm(d.view(*out.shape[:2], -1), a.t().expand(len(out), -1, -1), out=out)

    def to_input(self, layer: nn.Linear, d: Tensor) -> Tensor:
        """[out, B] → [in, B]."""
        weight = _halves(layer.weight)
        by_half: Tensor = torch.bmm(weight.transpose(1, 2), d.view(*weight.shape[:2], -1))
        return by_half.sum(dim=0)


def _halves(matrix: Tensor) -> Tensor:
    # An odd number of rows stays whole.
    return matrix.view(2 if len(matrix) % 2 == 0 else 1, -1, matrix.shape[1])


def layout_for(device: torch.device, dtype: torch.dtype) -> Layout:
    """Columns on a CPU, but not for bfloat16, whose products are quicker in rows."""
    return Columns() if device.type == "cpu" and dtype != torch.bfloat16 else Rows()
