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
WIDE = 8.0  # the largest μ, log σ² or logit, about that of a trained model


def checked_gradient(
    optimizer: Optimizer, batch: Batch, eps: Tensor, objective: Objective = NEG_ELBO
) -> Gradient:
    """The written-out gradient for the working model of the optimizer.

    Its terms and gradients are compared with those of autograd for this batch, in float64 on the
    CPU. Raises an exception if they differ, or if none is written out for the model or objective.

    The weights of the comparison depend on the architecture alone, so that a resumed training comes
    to the same conclusion. It is then repeated with wider outputs of encoder and decoder: a bound
    on log σ², say, has no effect on the outputs of an untrained model.
    """
    if objective != NEG_ELBO:
        raise TypeError("a gradient is written out for -ELBO with one sample only")
    layer_type = Columns if optimizer.model.device.type == "cpu" else Rows
    model = new_vae(optimizer.model.architecture, PROTOCOL_SEED).double()
    batch = Batch(batch.x.cpu().double(), None if batch.y is None else batch.y.cpu())
    eps = eps.cpu().double()
    gradient = PerceptronGradient(model, layer_type)
    # Autograd puts its gradients elsewhere.
    written = {name: parameter.grad for name, parameter in model.named_parameters()}
    _compare(model, gradient, written, batch, eps)
    network = cast(MLP, model.network)
    _widen(network.encoder, batch.x)
    _widen(network.decoder, eps.squeeze(1))
    _compare(model, gradient, written, batch, eps)
    return PerceptronGradient(optimizer.working, layer_type, optimizer.model)


@torch.no_grad()
def _widen(layers: nn.Sequential, inputs: Tensor) -> None:
    factor = WIDE / layers(inputs).abs().max()
    for parameter in layers[-1].parameters():
        parameter.mul_(factor)


def _compare(
    model: VAE, gradient: PerceptronGradient, written: dict[str, Tensor | None], batch: Batch,
    eps: Tensor,
) -> None:  # fmt: skip
    arranged = batch._replace(x=gradient.arrange(batch.x))
    computed = gradient.terms(arranged.x, gradient(arranged, eps))._asdict() | written
    autograd = AutogradGradient(model)
    expected = autograd.terms(batch.x, autograd(batch, eps))._asdict()
    expected |= {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, value in expected.items():
        if not (computed[name] - value).norm() <= TOLERANCE * value.norm():
            raise ValueError(f"the written-out gradient differs from model/objective.py in {name}")
