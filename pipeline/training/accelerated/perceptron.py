"""The gradient of −ELBO, written out for perceptrons with Bernoulli pixels.

The matrix products are those of autograd, with little else around them: nothing is recorded or
accumulated, and each product is written to where Adam reads it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.model.likelihood import Bernoulli
from pipeline.model.network import MLP, Batch
from pipeline.model.objective import ElboTerms
from pipeline.model.prior import StandardNormal, gaussian_kl
from pipeline.model.vae import VAE
from pipeline.training.accelerated.layers import Columns, Rows

aten = torch.ops.aten  # has the derivatives that autograd itself calls
# Of the gradient of a(x), x and a(x): the gradient of x.
DERIVATIVES: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda d, _, a: aten.threshold_backward(d, a, 0),
    nn.Tanh: lambda d, _, a: aten.tanh_backward(d, a),
    nn.GELU: lambda d, x, _: aten.gelu_backward(d, x),
    nn.SiLU: lambda d, x, _: aten.silu_backward(d, x),
}
Layers = Sequence[Rows | Columns | nn.Module]  # a module is an activation


class PerceptronGradient:
    """A Gradient. Matrix products use the dtype of the weights, everything else that of x and ε.

    Raises TypeError for a model that is not a perceptron with Bernoulli pixels and prior N(0, I).
    """

    def __init__(self, model: VAE, layer_type: type[Rows] | type[Columns]) -> None:
        network = model.network
        others = (type(model.likelihood), type(model.prior))
        if type(network) is not MLP or others != (Bernoulli, StandardNormal):
            raise TypeError("a gradient is written out for mlp, bernoulli and normal only")
        if model.architecture.num_classes:
            raise TypeError("no gradient is written out for conditional models")
        self.model = model
        self.kl_weight = torch.ones((), device=model.device)  # not read
        self.arrange = layer_type.arrange
        self.encoder, self.decoder = (
            [layer_type(layer) if isinstance(layer, nn.Linear) else layer for layer in layers]
            for layers in (network.encoder, network.decoder)
        )
        layers = [*self.encoder, *self.decoder]
        self.max_threads = min(each.max_threads for each in layers if isinstance(each, layer_type))

    @torch.no_grad()
    def __call__(self, batch: Batch, eps: Tensor) -> ElboTerms:
        """Set the gradients."""
        x, eps = self.arrange(batch.x), self.arrange(eps.squeeze(1))
        dtype = self.model.dtype
        encoded = _forward(self.encoder, x.to(dtype))
        mu, log_var = encoded[-1].to(x.dtype).chunk(2, dim=-1)
        noise = torch.exp(0.5 * log_var) * eps  # σ ε
        decoded = _forward(self.decoder, (mu + noise).to(dtype))
        logits = decoded[-1].to(x.dtype)
        recon, kl = self.model.likelihood.neg_log_prob(logits, x), gaussian_kl(mu, log_var)

        d_logits = torch.sigmoid(logits).sub_(x)
        d_z = _backward(self.decoder, decoded, d_logits.to(dtype)).to(x.dtype)
        # Through z = μ + σ ε, and through KL = ½ Σ (σ² + μ² − 1 − log σ²).
        d_encoded = torch.empty_like(encoded[-1], dtype=x.dtype)
        d_mu, d_log_var = d_encoded.chunk(2, dim=-1)
        torch.add(d_z, mu, out=d_mu)
        torch.add(torch.expm1(log_var), d_z * noise, out=d_log_var).mul_(0.5)
        _backward(self.encoder, encoded, d_encoded.to(dtype), to_input=False)
        return ElboTerms(recon, kl, loss=recon + kl)


def _forward(layers: Layers, a: Tensor) -> list[Tensor]:
    """The input of the first layer, and the output of each."""
    values = [a]
    for layer in layers:
        values.append(layer(values[-1]))
    return values


def _backward(layers: Layers, values: list[Tensor], d: Tensor, *, to_input: bool = True) -> Tensor:
    """Set the gradients of the layers, given that of their output; return that of their input.

    Without `to_input` the last product is left out, and the return value is of no use.
    """
    for i in reversed(range(len(layers))):
        layer = layers[i]
        if isinstance(layer, nn.Module):
            d = DERIVATIVES[type(layer)](d, values[i], values[i + 1])
            continue
        layer.set_gradients(values[i], d)
        if i > 0 or to_input:
            d = layer.backward(d)
    return d
