"""The gradient of −ELBO, written out for perceptrons with Bernoulli pixels.

The matrix products are those of autograd, with little else around them: nothing is recorded or
accumulated, and each product is written to where Adam reads it. What only the history needs is
computed for many batches at once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline.model.likelihood import Bernoulli
from pipeline.model.network import MLP, Batch
from pipeline.model.objective import ElboTerms
from pipeline.model.prior import StandardNormal, gaussian_kl
from pipeline.model.vae import VAE
from pipeline.training.accelerated.layers import Columns, Rows
from pipeline.training.accelerated.side_stream import SideStream

aten = torch.ops.aten  # has the derivatives that autograd itself calls
# Of the gradient of a(x), x and a(x): the gradient of x.
DERIVATIVES: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    nn.Identity: lambda d, _, a: d,
    nn.ReLU: lambda d, _, a: aten.threshold_backward(d, a, 0),
    nn.Tanh: lambda d, _, a: aten.tanh_backward(d, a),
    nn.GELU: lambda d, x, _: aten.gelu_backward(d, x),
    nn.SiLU: lambda d, x, _: aten.silu_backward(d, x),
}


class Values(NamedTuple):
    """What a layer has computed, each [B, ...]."""

    input: Tensor
    linear: Tensor
    output: Tensor


class PerceptronGradient:
    """A Gradient. Matrix products use the dtype of the weights, everything else that of x and ε.

    master: has the weights that Adam updates, and is given the gradients: `model` itself, unless
    that is a copy in bfloat16.
    Raises TypeError for a model that is not a perceptron with Bernoulli pixels and prior N(0, I).
    """

    def __init__(
        self, model: VAE, layer_type: type[Rows] | type[Columns], master: VAE | None = None
    ) -> None:
        kinds = (type(model.network), type(model.likelihood), type(model.prior))
        if kinds != (MLP, Bernoulli, StandardNormal) or model.architecture.num_classes:
            message = "a gradient is written out for unconditional mlp, bernoulli and normal only"
            raise TypeError(message)
        self.model = model
        self.kl_weight = torch.ones((), device=model.device)  # not read
        self.arrange = layer_type.arrange
        network, masters = cast(MLP, model.network), cast(MLP, (master or model).network)
        self.encoder = _layers(network.encoder, masters.encoder, layer_type)
        self.decoder = _layers(network.decoder, masters.decoder, layer_type)
        layers = [*self.encoder, *self.decoder]
        self.max_threads = min(layer.max_threads for layer in layers)
        self.aside = SideStream(model.device)

    @torch.no_grad()
    def __call__(self, batch: Batch, eps: Tensor) -> Sequence[Tensor]:
        """Set the gradients; return [μ, log σ²] and the logits."""
        x, eps, dtype = batch.x, self.arrange(eps.squeeze(1)), self.model.dtype
        encoded = _forward(self.encoder, x.to(dtype))
        mu_and_log_var = encoded[-1].output.to(x.dtype)
        mu, log_var = mu_and_log_var.chunk(2, dim=-1)
        noise = torch.exp(0.5 * log_var).mul_(eps)  # σ ε
        z = torch.add(mu, noise, out=torch.empty_like(noise, dtype=dtype))
        decoded = _forward(self.decoder, z)
        logits = decoded[-1].output.to(x.dtype)

        d_logits = torch.sigmoid(logits).sub_(x)
        d_z = _backward(self.decoder, decoded, d_logits.to(dtype), self.aside)
        # Through z = μ + σ ε, and through KL = ½ Σ (σ² + μ² − 1 − log σ²).
        d_encoded = torch.empty_like(encoded[-1].output)
        d_mu, d_log_var = d_encoded.chunk(2, dim=-1)
        torch.add(d_z, mu, out=d_mu)
        torch.add(torch.expm1(log_var), d_z * noise, out=d_log_var).mul_(0.5)
        _backward(self.encoder, encoded, d_encoded, self.aside, to_input=False)
        self.aside.join()
        return mu_and_log_var, logits

    @torch.no_grad()
    def terms(self, x: Tensor, outputs: Sequence[Tensor]) -> ElboTerms:
        """See Gradient."""
        mu_and_log_var, logits = outputs
        recon = self.model.likelihood.neg_log_prob(logits, x)
        kl = gaussian_kl(*mu_and_log_var.chunk(2, dim=-1))
        return ElboTerms(recon, kl, loss=recon + kl)


def _layers(
    modules: nn.Sequential, masters: nn.Sequential, layer_type: type[Rows] | type[Columns]
) -> list[Rows | Columns]:
    layers: list[Rows | Columns] = []
    for module, master in zip(modules, masters, strict=True):
        if isinstance(module, nn.Linear):
            layers.append(layer_type(module, cast(nn.Linear, master)))
        else:
            layers[-1].activation = module
    return layers


def _forward(layers: Sequence[Rows | Columns], a: Tensor) -> list[Values]:
    values = []
    for layer in layers:
        values.append(Values(a, *layer(a)))
        a = values[-1].output
    return values


def _backward(
    layers: Sequence[Rows | Columns], values: Sequence[Values], d: Tensor, aside: SideStream, *,
    to_input: bool = True,
) -> Tensor:  # fmt: skip
    """Set the gradients of the layers, given that of their output; return that of their input.

    Without `to_input` the last product is left out, and the return value is of no use.
    """
    for i in reversed(range(len(layers))):
        layer, (a, x, output) = layers[i], values[i]
        d = DERIVATIVES[type(layer.activation)](d, x, output)
        aside(layer.set_gradients, a, d)
        if i > 0 or to_input:
            d = layer.backward(d)
    return d
