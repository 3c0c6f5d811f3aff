"""The variational autoencoder of Kingma & Welling (2014) as multilayer perceptrons, and the file it is kept in.

The encoder gives μ and log σ² of q(z|x) = N(μ, diag σ²); the decoder gives the logits of p(x|z). What the logits
mean is likelihood.py's business. A model file is safetensors with everything needed to rebuild the model in its
header: nothing is unpickled.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
# One key: the order of several is not the same from one process to the next, and the bytes with it.
HEADER = "vae"


class VAE(nn.Module):
    """x_dim → h_dim (h_layers times) → z_dim, and the mirror image of it back to x_dim."""

    def __init__(self, *, x_dim: int, h_dim: int, z_dim: int, h_layers: int, activation: str) -> None:
        super().__init__()
        self.architecture = {
            "x_dim": x_dim, "h_dim": h_dim, "z_dim": z_dim, "h_layers": h_layers, "activation": activation,
        }  # fmt: skip
        self.z_dim = z_dim
        hidden = [h_dim] * h_layers
        # One layer for μ and log σ² together: half the kernel launches, the same function.
        self.encoder = _mlp([x_dim, *hidden, 2 * z_dim], ACTIVATIONS[activation])
        self.decoder = _mlp([z_dim, *hidden, x_dim], ACTIVATIONS[activation])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the matrix products are taken."""
        return cast(Tensor, self.encoder[0].weight).dtype

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's default for linear layers, U(−1/√fan_in, 1/√fan_in), drawn from `generator`."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X [B, x_dim] in [0, 1] → (μ, log σ²) of q(z|x), each [B, z_dim] and of the type of x."""
        mu, log_var = self.encoder(x.to(self.dtype)).to(x.dtype).chunk(2, dim=-1)
        return mu, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Z [B, z_dim] → logits of p(x|z), [B, x_dim], of the type of z."""
        logits: Tensor = self.decoder(z.to(self.dtype)).to(z.dtype)
        return logits


def _mlp(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def reparameterize(mu: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """Z = μ + σ ε: a sample of N(μ, diag σ²) through which gradients reach μ and σ, for ε ~ N(0, I)."""
    return mu + torch.exp(0.5 * log_var) * eps


def save_model(model: VAE, path: Path, provenance: dict[str, Any]) -> None:
    """Write weights (float32, CPU) and, in the header, architecture, likelihood and what the weights come from."""
    header = {"architecture": model.architecture, "likelihood": "bernoulli", "provenance": provenance}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Not save_file, which makes files that only their owner can read.
    path.write_bytes(save(tensors, metadata={HEADER: json.dumps(header, sort_keys=True, allow_nan=False)}))


def load_model(path: Path) -> tuple[VAE, dict[str, Any]]:
    """The model in `path`, on the CPU, and its header. Raises InputError if the file is no model of this project."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = VAE(**header["architecture"])
        model.load_state_dict(tensors)
    except OSError as error:
        raise InputError(f"{path}: cannot be read; `dvc repro train` makes it") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: is not a model file of this project; `dvc repro train` makes it") from error
    return model, header
