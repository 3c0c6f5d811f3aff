"""Faster training of the default models. Optional: without this folder autograd does the work.

Nothing is defined here: the written-out gradient is used only if it equals the gradient of
model/objective.py.
"""

import copy

import torch
from torch import Tensor

from pipeline.model.network import Batch
from pipeline.model.objective import ElboTerms
from pipeline.training.accelerated.layers import Columns, Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.gradient import AutogradGradient, Gradient
from pipeline.training.optimizer import Optimizer

TOLERANCE = 1e-4  # of the norm; rounding in float32 stays below 1e-5


class NotEqualError(Exception):
    """The written-out gradient is not that of model/objective.py."""


def checked_gradient(optimizer: Optimizer, batch: Batch, eps: Tensor) -> Gradient:
    """The written-out gradient for the working model of the optimizer.

    Its terms and gradients are compared with those of autograd for this batch, in float32. Raises
    an exception if they differ, or if the model is not of the kind that it is written out for.
    """
    working = optimizer.working
    # Products in bfloat16 are faster in rows.
    in_columns = working.device.type == "cpu" and working.dtype == torch.float32
    layer_type = Columns if in_columns else Rows
    model = copy.deepcopy(optimizer.model)
    expected = AutogradGradient(model)(batch, eps)
    expected_gradients = [parameter.grad for parameter in model.parameters()]
    terms = PerceptronGradient(model, layer_type)(batch, eps)
    for name in ElboTerms._fields:
        _compare(name, getattr(terms, name), getattr(expected, name))
    named = zip(model.named_parameters(), expected_gradients, strict=True)
    for (name, parameter), expected_gradient in named:
        _compare(name, parameter.grad, expected_gradient)
    return PerceptronGradient(working, layer_type)


def _compare(name: str, value: Tensor | None, expected: Tensor | None) -> None:
    if value is None or expected is None:
        raise NotEqualError(f"{name} has no gradient")
    if not (value - expected).norm() <= TOLERANCE * expected.norm():
        raise NotEqualError(f"the written-out gradient differs from model/objective.py in {name}")
