"""Small models for tests."""

import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.network import Architecture
from pipeline.model.vae import VAE, new_vae

PRECISIONS = ("float32", "bfloat16")  # tf32 needs a GPU
ROOT = Path(__file__).parents[2]
DEFAULT = {
    "network": "mlp", "likelihood": "bernoulli", "image_shape": (28, 28),
    "z_dim": 4, "h_dim": 32, "h_layers": 1, "activation": "relu",
}  # fmt: skip


def small_vae(seed: int = 0, **changes: object) -> VAE:
    return new_vae(Architecture(**DEFAULT | changes), seed)


def show_labels(model: VAE) -> VAE:
    """Replace the decoder: every output is the label."""
    num_pixels = math.prod(model.architecture.image_shape)
    model.network.decode = lambda z, y: y.unsqueeze(-1).expand(*z.shape[:-1], num_pixels).to(z)
    return model


def weights(model: nn.Module) -> Tensor:
    """All weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def gradients(model: nn.Module) -> Tensor:
    """All gradients as one vector, in the order of `weights`."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def documented(module: ModuleType) -> dict[str, Any]:
    """The names of a module after the example for it in docs/extending.md is added."""
    path = Path(module.__file__).relative_to(ROOT).as_posix()
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    (example,) = re.findall(rf"```python\n# {path}\n(.*?)```", text, re.DOTALL)
    names = dict(vars(module))
    exec(example, names)
    return names
