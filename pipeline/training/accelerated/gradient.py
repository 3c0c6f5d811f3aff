"""−ELBO of a batch and its gradient: written out for perceptrons, by autograd for anything else.

Written out it is the same matrix products, and as little beside them as there can be: nothing is recorded or
accumulated, each product writes to where Adam reads it. That autograd finds the same is tested.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.training.accelerated.layout import TURNS, Linear, Places, layout_for
from pipeline.model.likelihood import bernoulli_recon_gradient, pixel_recon
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE
from pipeline.model.objective import ElboTerms, elbo_terms

aten = torch.ops.aten

# Sets `grad` of every parameter to the gradient of Σ −ELBO over a batch: uint8 [B, D], ε [B, Z] → terms [B].
# The sum, as in the seed, and not the mean: Adam's ε weighs less.
Gradient = Callable[[Tensor, Tensor], ElboTerms]


class Activation(NamedTuple):
    """In place wherever it can be: memory that was in use before is written faster than any other."""

    forward: Callable[[Tensor], Tensor]
    # By the gradient of what comes out, what went in, and what came out: the gradient of what went in.
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation(
        torch.relu_, lambda d, _, a: aten.threshold_backward.grad_input(d, a, 0, grad_input=d)
    ),
    nn.Tanh: Activation(
        torch.tanh_, lambda d, _, a: aten.tanh_backward.grad_input(d, a, grad_input=d)
    ),
    nn.GELU: Activation(F.gelu, lambda d, a, _: aten.gelu_backward.grad_input(d, a, grad_input=d)),
    nn.SiLU: Activation(F.silu, lambda d, a, _: aten.silu_backward.grad_input(d, a, grad_input=d)),
}


def gradient_of(model: VAE) -> Gradient:
    """Of a model whose gradients have their place: written out where every layer is known, else by autograd."""
    return WrittenOut(model) if is_known(model) else ByAutograd(model)


def is_known(model: VAE) -> bool:
    """Whether the gradient is written out for every layer of the model."""
    return {type(layer) for net in (model.encoder, model.decoder) for layer in net} <= {
        nn.Linear,
        *ACTIVATIONS,
    }


def most_threads(model: VAE) -> int:
    """How many threads a training on a CPU can use without its bits depending on how many it has.

    MKL adds up in another order with more than two, at some shapes; where nothing is known of the shapes, one.
    """
    linear = [
        layer
        for net in (model.encoder, model.decoder)
        for layer in net
        if isinstance(layer, nn.Linear)
    ]
    return 2 if is_known(model) and all(layer.out_features % 2 == 0 for layer in linear) else 1


class ByAutograd:
    """The general path."""

    def __init__(self, model: VAE) -> None:
        self.model = model

    def __call__(self, images: Tensor, eps: Tensor) -> ElboTerms:
        """Set the gradients of this batch."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()  # and not None: Adam and a CUDA graph know it by its place
        with torch.inference_mode(False), torch.enable_grad():
            terms = elbo_terms(self.model, to_unit(images).to(eps.dtype), eps)
            terms.neg_elbo.sum().backward()
        return ElboTerms(terms.recon.detach(), terms.kl.detach())


class WrittenOut:
    """For linear layers and known activations.

    Products are taken in the type of the weights, what is between them in that of x and ε.
    """

    def __init__(self, model: VAE) -> None:
        self.dtype = model.dtype
        device = next(model.parameters()).device
        self.layout = layout_for(device, self.dtype)
        self.x = Places(device, torch.float32, TURNS)
        self.encoder, self.decoder = (
            [
                self.layout(layer) if isinstance(layer, nn.Linear) else ACTIVATIONS[type(layer)]
                for layer in net
            ]
            for net in (model.encoder, model.decoder)
        )

    def __call__(self, images: Tensor, eps: Tensor) -> ElboTerms:
        """Set the gradients of this batch."""
        dim = self.layout.features
        images, eps = self.layout.arrange(images), self.layout.arrange(eps)
        x = to_unit(images, out=self.x(*images.shape)).to(eps.dtype)
        encoded = _forward(self.encoder, x.to(self.dtype))
        mu, log_var = encoded[-1].to(eps.dtype).chunk(2, dim=dim)
        half_log_var = 0.5 * log_var
        noise = half_log_var.exp().mul_(eps)
        decoded = _forward(self.decoder, (mu + noise).to(self.dtype))
        logits = decoded[-1].to(x.dtype)
        recon = self.layout.total(pixel_recon(logits, x))
        half_excess = log_var.expm1().mul_(0.5)
        kl = (half_excess - half_log_var).addcmul_(mu, mu, value=0.5).sum(dim=dim)

        d_logits = bernoulli_recon_gradient(logits, x).to(self.dtype)
        d_z = self._backward(self.decoder, decoded, d_logits).to(eps.dtype)
        # Through z = μ + σ ε, and through KL = ½ Σ (σ² − 1 − log σ² + μ²).
        d_mu, d_log_var = d_z + mu, half_excess.addcmul_(d_z, noise, value=0.5)
        d_encoded = torch.cat([d_mu, d_log_var], dim=dim).to(self.dtype)
        self._backward(self.encoder, encoded, d_encoded, to_input=False)
        return ElboTerms(recon, kl)

    def _backward(
        self,
        layers: Sequence[Linear | Activation],
        values: list[Tensor],
        d: Tensor,
        *,
        to_input: bool = True,
    ) -> Tensor:
        """Set the gradients of these layers by that of their output; that of their input, unless it is not wanted."""
        for i in range(len(layers) - 1, -1, -1):
            layer = layers[i]
            if isinstance(layer, Activation):
                d = layer.backward(d, values[i], values[i + 1])
                continue
            layer.weight_gradient(values[i], d)
            torch.sum(d, dim=1 - self.layout.features, out=layer.bias_grad)
            if i > 0 or to_input:
                d = layer.to_input(d)
        return d


def _forward(layers: Sequence[Linear | Activation], a: Tensor) -> list[Tensor]:
    """What goes into the first layer, and what comes out of every one."""
    values = [a]
    for layer in layers:
        values.append(layer.forward(values[-1]))
    return values
