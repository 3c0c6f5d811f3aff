"""The matrix products of a linear layer, forwards and backwards, in two layouts of what goes through it.

Rows, [B, features], is the usual one. In columns, [features, B], the rows of a weight matrix are given to the cores by
halves, and everything that belongs to a half, its outputs, its gradient and Adam's moments of it, is written by the
core that reads it next. Where two cores share no cache, as on server CPUs made of several dies, that is worth more
than anything else: there a line that the other core has written costs as much as one from memory.
"""

from functools import partial, reduce
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(Protocol):
    """A layer in some layout. It holds views of parameters and gradients: these keep their place."""

    bias_grad: Tensor

    def forward(self, a: Tensor) -> Tensor:
        """W a + b."""

    def weight_gradient(self, a: Tensor, d: Tensor) -> None:
        """D aᵀ to where the gradient of W is, from the layer's input and the gradient by its output."""

    def to_input(self, d: Tensor) -> Tensor:
        """Wᵀ d, the gradient by the layer's input."""


class Rows:
    """[B, features]."""

    features = 1

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.weight_grad, self.bias_grad = place(layer.weight), place(layer.bias)

    @staticmethod
    def arrange(x: Tensor) -> Tensor:
        """[B, D], as it is."""
        return x

    def forward(self, a: Tensor) -> Tensor:
        """[B, in] → [B, out]."""
        return F.linear(a, self.weight, self.bias)

    def weight_gradient(self, a: Tensor, d: Tensor) -> None:
        """[B, in] and [B, out]."""
        torch.mm(d.t(), a, out=self.weight_grad)

    def to_input(self, d: Tensor) -> Tensor:
        """[B, out] → [B, in]."""
        return torch.mm(d, self.weight)


class Columns:
    """[features, B], by halves of the features.

    By two whatever the number of cores: `to_input` adds over them, and other parts would give other bits. What comes
    out is kept in one place for every B, and is to be used before the next step.
    """

    features = 0

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.weight_grad = _halves(layer.weight.detach()), _halves(place(layer.weight))
        n_out, n_in = layer.weight.shape
        self._by_input = n_in > n_out and n_in % 2 == 0
        self._transposed = _halves(layer.weight.detach().t()) if self._by_input else self.weight.transpose(1, 2)
        self.bias, self.bias_grad = layer.bias.detach().view(len(self.weight), -1, 1), place(layer.bias)
        self._places: dict[tuple[int, ...], Tensor] = {}

    @staticmethod
    def arrange(x: Tensor) -> Tensor:
        """[B, D] → [D, B]; in three dimensions, for a plain transposition is copied by one core alone."""
        return _halves(x.t()).contiguous().view(-1, len(x))

    def forward(self, a: Tensor) -> Tensor:
        """[in, B] → [out, B]."""
        parts, n_out, _ = self.weight.shape
        out = self._place(parts, n_out, a.shape[1])
        return torch.baddbmm(self.bias, self.weight, a.expand(parts, -1, -1), out=out).view(-1, a.shape[1])

    def weight_gradient(self, a: Tensor, d: Tensor) -> None:
        """[in, B] and [out, B]."""
        torch.bmm(self._split(d), a.t().expand(len(self.weight), -1, -1), out=self.weight_grad)

    def to_input(self, d: Tensor) -> Tensor:
        """[out, B] → [in, B]."""
        parts, n_in, _ = self._transposed.shape
        if self._by_input:
            out = self._place(parts, n_in, d.shape[1])
            return torch.bmm(self._transposed, d.expand(parts, -1, -1), out=out).view(-1, d.shape[1])
        by_half = torch.bmm(self._transposed, self._split(d), out=self._place(parts, n_in, d.shape[1]))
        d_in: Tensor = reduce(partial(torch.add, out=self._place(n_in, d.shape[1])), by_half)
        return d_in

    def _split(self, d: Tensor) -> Tensor:
        return d.view(len(self.weight), -1, d.shape[1])

    def _place(self, *shape: int) -> Tensor:
        if shape not in self._places:
            self._places[shape] = self.weight.new_empty(shape)
        return self._places[shape]


Layout = type[Rows] | type[Columns]


def layout_for(device: torch.device, dtype: torch.dtype) -> Layout:
    """Columns on a CPU, but not for bfloat16, whose products are quicker in rows."""
    return Columns if device.type == "cpu" and dtype != torch.bfloat16 else Rows


def place(parameter: Tensor) -> Tensor:
    """Where the gradient of a parameter is written to."""
    if parameter.grad is None:
        raise ValueError("a parameter has no place for its gradient")
    return parameter.grad


def _halves(matrix: Tensor) -> Tensor:
    # An odd number of rows stays whole.
    halves: Tensor = matrix.unflatten(0, (2 if len(matrix) % 2 == 0 else 1, -1))
    return halves
