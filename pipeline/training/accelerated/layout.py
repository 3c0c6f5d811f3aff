"""The matrix products of a linear layer, forwards and backwards, in two layouts of what goes through it.

Rows, [B, features], is the usual one. In columns, [features, B], the rows of a weight matrix are given to the cores by
halves, and everything that belongs to a half, its outputs, its gradient and Adam's moments of it, is written by the
core that reads it next. Where two cores share no cache, as on server CPUs made of several dies, that is worth more
than anything else: there a line that the other core has written costs as much as one from memory.

And so does writing a line that the other core has read and may still hold. What both read, the input and what comes out
of a layer, is therefore written to another place at every step, until what was there before is forgotten.
"""

from collections import deque
from functools import partial, reduce
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Steps after which a place is written to again, but for places that would take more bytes than caches hold anyway.
TURNS, MOST = 16, 2**23


class Places:
    """Memory that steps write to, by shape, in at most `turns`."""

    def __init__(self, device: torch.device, dtype: torch.dtype, turns: int) -> None:
        self.turns = turns
        self._empty = partial(torch.empty, device=device, dtype=dtype)
        self._by_shape: dict[tuple[int, ...], deque[Tensor]] = {}

    def __call__(self, *shape: int) -> Tensor:
        """The next place: what was there is to be no longer in use."""
        if shape not in self._by_shape:
            turns = max(1, min(self.turns, MOST // self._empty(shape).nbytes))
            self._by_shape[shape] = deque(self._empty(shape) for _ in range(turns))
        places = self._by_shape[shape]
        places.rotate()
        return places[0]


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

    @staticmethod
    def total(values: Tensor) -> Tensor:
        """[B, D] → [B], the sum over the features."""
        return values.sum(dim=1)

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

    By two whatever the number of cores: `to_input` adds over them, and other parts would give other bits. Where a layer
    has more inputs than outputs, its inputs are given to the cores instead, and nothing is to be added. What comes out
    has a place in memory that a later step writes to again.
    """

    features = 0

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.weight_grad = _halves(layer.weight.detach()), _halves(place(layer.weight))
        n_out, n_in = layer.weight.shape
        self._by_input = n_in > n_out and n_in % 2 == 0
        self._transposed = (
            _halves(layer.weight.detach().t()) if self._by_input else self.weight.transpose(1, 2)
        )
        self.bias, self.bias_grad = (
            layer.bias.detach().view(len(self.weight), -1, 1),
            place(layer.bias),
        )
        self._out, self._in = (
            Places(layer.weight.device, layer.weight.dtype, turns) for turns in (TURNS, 1)
        )

    @staticmethod
    def arrange(x: Tensor) -> Tensor:
        """[B, D] → [D, B]; in three dimensions, for a plain transposition is copied by one core alone."""
        return _halves(x.t()).contiguous().view(-1, len(x))

    @staticmethod
    def total(values: Tensor) -> Tensor:
        """[D, B] → [B], the sum over the features, by each core over its half."""
        return _halves(values).sum(dim=1).sum(dim=0)

    def forward(self, a: Tensor) -> Tensor:
        """[in, B] → [out, B]."""
        parts, n_out, _ = self.weight.shape
        out = self._out(parts, n_out, a.shape[1])
        return torch.baddbmm(self.bias, self.weight, a.expand(parts, -1, -1), out=out).view(
            -1, a.shape[1]
        )

    def weight_gradient(self, a: Tensor, d: Tensor) -> None:
        """[in, B] and [out, B]."""
        torch.bmm(self._split(d), a.t().expand(len(self.weight), -1, -1), out=self.weight_grad)

    def to_input(self, d: Tensor) -> Tensor:
        """[out, B] → [in, B]."""
        parts, n_in, _ = self._transposed.shape
        if self._by_input:
            out = self._in(parts, n_in, d.shape[1])
            return torch.bmm(self._transposed, d.expand(parts, -1, -1), out=out).view(
                -1, d.shape[1]
            )
        by_half = torch.bmm(self._transposed, self._split(d), out=self._in(parts, n_in, d.shape[1]))
        d_in: Tensor = reduce(partial(torch.add, out=self._in(n_in, d.shape[1])), by_half)
        return d_in

    def _split(self, d: Tensor) -> Tensor:
        return d.view(len(self.weight), -1, d.shape[1])


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
