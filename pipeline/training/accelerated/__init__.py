"""Faster training of the default models. Optional: without this folder autograd does the work.

Nothing is defined here: the written-out gradient is used only if it equals the gradient of
model/objective.py.
"""

import copy

from torch import Tensor

from pipeline.model.network import Batch
from pipeline.training.accelerated.layers import Columns, Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.gradient import AutogradGradient, Gradient
from pipeline.training.optimizer import Optimizer

TOLERANCE = 1e-4  # of the norm; rounding in float32 stays below 1e-5


def checked_gradient(optimizer: Optimizer, batch: Batch, eps: Tensor) -> Gradient:
    """The written-out gradient for the working model of the optimizer.

    Its terms and gradients are compared with those of autograd for this batch, in float32. Raises
    an exception if they differ, or if the model is not of the kind that it is written out for.
    """
    working = optimizer.working
    layer_type = Columns if working.device.type == "cpu" else Rows
    model = copy.deepcopy(optimizer.model)
    expected = AutogradGradient(model)(batch, eps)._asdict()
    expected |= {name: parameter.grad for name, parameter in model.named_parameters()}
    computed = PerceptronGradient(model, layer_type)(batch, eps)._asdict()
    computed |= {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, value in expected.items():
        if not (computed[name] - value).norm() <= TOLERANCE * value.norm():
            raise ValueError(f"the written-out gradient differs from model/objective.py in {name}")
    return PerceptronGradient(working, layer_type)
