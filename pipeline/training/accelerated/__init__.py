"""Faster training of the default models. Optional: without this folder autograd does the work.

Nothing is defined here: the written-out gradient is used only if it equals the gradient of
model/objective.py.
"""

from typing import cast

import torch
from torch import Tensor, nn

from pipeline.model.network import MLP, Batch
from pipeline.model.objective import NEG_ELBO, Objective
from pipeline.model.vae import VAE, new_vae
from pipeline.runtime.randomness import PROTOCOL_SEED
from pipeline.training.accelerated.layers import Columns, Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.gradient import AutogradGradient, Gradient
from pipeline.training.optimizer import Optimizer

TOLERANCE = 1e-6  # of the norm, far above rounding in float64
# The same in the precision that is used: a ReLU may open that is shut in float64.
ROUGH = {"float32": 0.01, "tf32": 0.1, "bfloat16": 0.5}
WIDE = 8.0  # the largest μ, log σ² or logit, about that of a trained model

Values = dict[str, Tensor]  # terms and gradients by name, in float64 on the CPU


def checked_gradient(
    optimizer: Optimizer, batch: Batch, eps: Tensor, objective: Objective = NEG_ELBO
) -> Gradient:
    """The written-out gradient for the working model of the optimizer.

    Its terms and gradients are compared with those of autograd for this batch: in float64 on the
    CPU, then roughly on the device and in the precision of the training. Raises an exception if
    they differ, or if none is written out for the model or objective.

    The weights of the comparison depend on the architecture alone, so that a resumed training comes
    to the same conclusion. It is repeated with wider outputs of encoder and decoder: a bound on
    log σ², say, has no effect on the outputs of an untrained model.
    """
    if objective != NEG_ELBO:
        raise TypeError("a gradient is written out for -ELBO with one sample only")
    model, device = optimizer.model, optimizer.model.device
    layer_type = Columns if device.type == "cpu" else Rows
    exact, own = (new_vae(model.architecture, PROTOCOL_SEED) for _ in range(2))
    exact.double()
    y = None if batch.y is None else batch.y.cpu()
    inputs = Batch(batch.x.cpu().double(), y), eps.cpu().double()

    PerceptronGradient(exact, layer_type)  # raises, before anything is computed
    expected = _compute(AutogradGradient(exact), exact, *inputs)
    written_out = PerceptronGradient(exact, layer_type)
    _compare(_compute(written_out, exact, *inputs), expected, TOLERANCE)

    rounded = Optimizer(own.to(device), 1.0, optimizer.precision)
    written_out = PerceptronGradient(rounded.working, layer_type, own)
    _compare(_compute(written_out, own, batch, eps), expected, ROUGH[optimizer.precision])

    network = cast(MLP, exact.network)
    _widen(network.encoder, inputs[0].x)
    _widen(network.decoder, inputs[1].squeeze(1))
    expected = _compute(AutogradGradient(exact), exact, *inputs)
    written_out = PerceptronGradient(exact, layer_type)
    _compare(_compute(written_out, exact, *inputs), expected, TOLERANCE)
    return PerceptronGradient(optimizer.working, layer_type, model)


@torch.no_grad()
def _widen(layers: nn.Sequential, inputs: Tensor) -> None:
    factor = WIDE / layers(inputs).abs().max()
    for parameter in layers[-1].parameters():
        parameter.mul_(factor)


def _compute(gradient: Gradient, model: VAE, batch: Batch, eps: Tensor) -> Values:
    arranged = batch._replace(x=gradient.arrange(batch.x))
    values = gradient.terms(arranged.x, gradient(arranged, eps))._asdict()
    values |= {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()  # what is not computed again is missing
    return {name: value.cpu().double() for name, value in values.items()}


def _compare(computed: Values, expected: Values, tolerance: float) -> None:
    for name, value in expected.items():
        if not (computed[name] - value).norm() <= tolerance * value.norm():
            raise ValueError(f"the written-out gradient differs from model/objective.py in {name}")
