"""−ELBO of a batch and its gradient: written out for perceptrons, by autograd for anything else.

Written out it is the same matrix products, and as little beside them as there can be: nothing is recorded or
accumulated, each product writes to where Adam reads it. That autograd finds the same is tested.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.vae.layout import Layout, layout_for
from pipeline.vae.likelihood import bernoulli_recon, bernoulli_recon_gradient
from pipeline.vae.model import VAE
from pipeline.vae.objective import ElboTerms, elbo_terms, gaussian_kl

Gradient = Callable[[VAE, Tensor, Tensor], ElboTerms]

# By the gradient of what comes out of an activation, what went in, and what came out.
BACKWARD: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda d, before, after: torch.ops.aten.threshold_backward(d, after, 0),
    nn.Tanh: lambda d, before, after: torch.ops.aten.tanh_backward(d, after),
    nn.GELU: lambda d, before, after: torch.ops.aten.gelu_backward(d, before),
    nn.SiLU: lambda d, before, after: torch.ops.aten.silu_backward(d, before),
}


def gradient_of(model: VAE) -> Gradient:
    """`written_out` where it knows every layer of the model, else `by_autograd`."""
    layers = {type(layer) for net in (model.encoder, model.decoder) for layer in net}
    return written_out if layers <= {nn.Linear, *BACKWARD} else by_autograd


def most_threads(model: VAE) -> int:
    """How many threads a training on a CPU can use without its bits depending on how many it has.

    MKL adds up in another order with more than two, at some shapes; where nothing is known of the shapes, one.
    """
    linear = [layer for net in (model.encoder, model.decoder) for layer in net if isinstance(layer, nn.Linear)]
    even = all(layer.out_features % 2 == 0 for layer in linear)
    return 2 if even and gradient_of(model) is written_out else 1


def by_autograd(model: VAE, x: Tensor, eps: Tensor) -> ElboTerms:
    """Set `grad` of every parameter to the gradient of Σ −ELBO over the batch: x [B, D], ε [B, Z] → terms [B].

    The sum, as in the seed, and not the mean: Adam's ε weighs less.
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()  # and not None: Adam and a CUDA graph know it by its place
    terms = elbo_terms(model, x, eps)
    terms.neg_elbo.sum().backward()
    return ElboTerms(terms.recon.detach(), terms.kl.detach())


@torch.no_grad()
def written_out(model: VAE, x: Tensor, eps: Tensor) -> ElboTerms:
    """The same, for a model of linear layers and known activations whose parameters have a `grad` to write to.

    Products are taken in the type of the weights, what is between them in that of x and ε.
    """
    dtype = model.dtype
    layout = layout_for(x.device, dtype)
    dim = layout.features
    x, eps = layout.arrange(x), layout.arrange(eps)
    encoded = _forward(model.encoder, x.to(dtype), layout)
    mu, log_var = encoded[-1].to(eps.dtype).chunk(2, dim=dim)
    sigma = torch.exp(0.5 * log_var)
    noise = sigma * eps
    decoded = _forward(model.decoder, (mu + noise).to(dtype), layout)
    logits = decoded[-1].to(x.dtype)
    terms = ElboTerms(bernoulli_recon(logits, x, dim), gaussian_kl(mu, log_var, dim))

    d_logits = bernoulli_recon_gradient(logits, x)
    d_z = _backward(model.decoder, decoded, d_logits.to(dtype), layout).to(eps.dtype)
    # Through z = μ + σ ε, and through KL = ½ Σ (σ² + μ² − 1 − log σ²).
    d_mu, d_log_var = d_z + mu, 0.5 * (d_z * noise + sigma.square() - 1)
    d_encoded = torch.cat([d_mu, d_log_var], dim=dim).to(dtype)
    _backward(model.encoder, encoded, d_encoded, layout, to_input=False)
    return terms


def place(parameter: Tensor) -> Tensor:
    """Where the gradient of a parameter is written to."""
    if parameter.grad is None:
        raise ValueError("a parameter has no place for its gradient")
    return parameter.grad


def _forward(net: nn.Sequential, a: Tensor, layout: Layout) -> list[Tensor]:
    """What goes into the first layer, and what comes out of every one."""
    values = [a]
    for layer in net:
        values.append(layout.forward(layer, values[-1]) if isinstance(layer, nn.Linear) else layer(values[-1]))
    return values


def _backward(net: nn.Sequential, values: list[Tensor], d: Tensor, layout: Layout, *, to_input: bool = True) -> Tensor:
    """Set the gradients of `net` by that of its output; that of its input, unless it is not wanted."""
    for i, layer in reversed(list(enumerate(net))):
        before, after = values[i], values[i + 1]
        if isinstance(layer, nn.Linear):
            layout.weight_gradient(before, d, place(layer.weight))
            torch.sum(d, dim=1 - layout.features, out=place(layer.bias))
            if i > 0 or to_input:
                d = layout.to_input(layer, d)
        else:
            d = BACKWARD[type(layer)](d, before, after)
    return d
