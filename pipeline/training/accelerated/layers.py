"""The matrix products of a linear layer, forward and backward, for two layouts of activations.

Activations are [B, features] in both. Their memory is row by row in Rows, as usual, and feature by
feature in Columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rows:
    """A linear layer and its activation in the usual layout.

    It keeps views of parameters and gradients.

    master: the layer that is given the gradients, maybe `layer` itself.
    """

    max_threads = 1

    def __init__(self, layer: nn.Linear, master: nn.Linear) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.weight_grad, self.bias_grad = _gradient(master.weight), _gradient(master.bias)
        self.activation: nn.Module = nn.Identity()

    @staticmethod
    def arrange(a: Tensor) -> Tensor:
        """The same values in this layout."""
        return a

    def __call__(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """[B, in] -> [B, out] before and after the activation."""
        # The derivative of ReLU does not need the former. MPS has no such product.
        if isinstance(self.activation, nn.ReLU) and not a.is_mps:
            output = torch._addmm_activation(self.bias, a, self.weight.t())
            return output, output
        x = F.linear(a, self.weight, self.bias)
        return x, self.activation(x)

    def set_gradients(self, a: Tensor, d: Tensor) -> None:
        """Set the gradients of the parameters, given input and gradient of the output."""
        if a.dtype == self.weight_grad.dtype:
            torch.mm(d.t(), a, out=self.weight_grad)
        elif a.is_cuda:
            torch.ops.aten.mm.dtype_out(d.t(), a, self.weight_grad.dtype, out=self.weight_grad)
        else:  # where no product of bfloat16 gives float32
            self.weight_grad.copy_(torch.mm(d.t(), a))
        torch.sum(d, dim=0, dtype=self.bias_grad.dtype, out=self.bias_grad)

    def backward(self, d: Tensor) -> Tensor:
        """The gradient of the input [B, in], given that of the output [B, out]."""
        return torch.mm(d, self.weight)


class Columns:
    """The layout for two CPU cores that share no cache, as on server CPUs made of several dies.

    Each core computes one half of the rows of a weight matrix. What belongs to a half (outputs,
    gradients, Adam's moments) is then written by the core that reads it next. The halves do not
    depend on the number of cores, and so neither do the bits. An odd number of rows stays whole.
    """

    def __init__(self, layer: nn.Linear, master: nn.Linear) -> None:
        weight = layer.weight.detach()
        self.weight, self.weight_grad = _halves(weight), _halves(_gradient(master.weight))
        self.max_threads = len(self.weight)
        self.bias = layer.bias.detach().view(len(self.weight), -1, 1)
        self.bias_grad = _gradient(master.bias)
        self.activation: nn.Module = nn.Identity()
        # In a layer with more inputs than outputs the halves of `backward` are those of the input.
        self._by_input = layer.in_features > layer.out_features
        self._transposed = _halves(weight.t()) if self._by_input else self.weight.transpose(1, 2)

    @staticmethod
    def arrange(a: Tensor) -> Tensor:
        """See Rows."""
        # As three dimensions: PyTorch transposes a matrix on one core.
        return _halves(a.t()).contiguous().flatten(0, 1).t()

    def __call__(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """See Rows."""
        inputs = a.t().expand(len(self.weight), -1, -1)
        x = torch.baddbmm(self.bias, self.weight, inputs).flatten(0, 1).t()
        return x, self.activation(x)

    def set_gradients(self, a: Tensor, d: Tensor) -> None:
        """See Rows."""
        parts = len(self.weight)
        factors = d.t().unflatten(0, (parts, -1)), a.expand(parts, -1, -1)
        if a.dtype == self.weight_grad.dtype:
            torch.bmm(*factors, out=self.weight_grad)
        else:
            self.weight_grad.copy_(torch.bmm(*factors))
        torch.sum(d, dim=0, dtype=self.bias_grad.dtype, out=self.bias_grad)

    def backward(self, d: Tensor) -> Tensor:
        """See Rows."""
        parts = len(self._transposed)
        if self._by_input:
            return torch.bmm(self._transposed, d.t().expand(parts, -1, -1)).flatten(0, 1).t()
        return torch.bmm(self._transposed, d.t().unflatten(0, (parts, -1))).sum(dim=0).t()


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _halves(matrix: Tensor) -> Tensor:
    """[n, m] -> [2, n / 2, m], or [1, n, m] if n is odd."""
    parts = 2 if len(matrix) % 2 == 0 else 1
    return matrix.view(parts, -1, matrix.shape[1])
