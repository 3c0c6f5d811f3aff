"""The variational autoencoder of Kingma & Welling (2014), and its file.

The header of a model file has everything that is needed to rebuild the model.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.model.network import ACTIVATIONS, NETWORKS, Architecture, Batch, Network, Posterior
from pipeline.runtime.randomness import seeded
from pipeline.runtime.tensor_file import read_header, read_tensors, write_tensors


class VAE(nn.Module):
    """A network and a likelihood.

    Matrix products use the dtype of the weights, everything else that of the input.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.z_dim = architecture.z_dim
        self.likelihood = LIKELIHOODS[architecture.likelihood]
        num_outputs = self.likelihood.num_outputs(architecture.num_pixels)
        self.network = NETWORKS[architecture.network](architecture, num_outputs)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def encode(self, batch: Batch) -> Posterior:
        """Images [B, D] → q(z|x)."""
        network = cast(Network, self.network)
        mu, log_var = network.encode(Batch(batch.x.to(self.dtype), batch.y))
        return Posterior(mu.to(batch.x.dtype), log_var.to(batch.x.dtype))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Z [..., Z] and labels y [...] → parameters of p(x|z), [..., O]."""
        network = cast(Network, self.network)
        labels = None if y is None else y.reshape(-1)
        outputs = network.decode(z.to(self.dtype).reshape(-1, self.z_dim), labels)
        return outputs.view(*z.shape[:-1], -1).to(z.dtype)

    def mean(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x|z], [..., D] in [0, 1]."""
        return self.likelihood.mean(self.decode(z, y))


def new_vae(architecture: Architecture, seed: int) -> VAE:
    """An untrained model on the CPU; the initial weights of every layer depend on `seed` alone."""
    with seeded(seed, "init"):
        return VAE(architecture)


def save_vae(model: VAE, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the weights, with the architecture and `provenance`, what decided them, as header."""
    header = {"architecture": asdict(model.architecture), "provenance": dict(provenance)}
    write_tensors(path, model.state_dict(), header)


def load_vae(path: Path) -> VAE:
    """Load a model file on the CPU. Raises UserError if it is none or names an unknown part."""
    try:
        described = read_header(path)["architecture"]
        architecture = Architecture(**described | {"image_shape": tuple(described["image_shape"])})
    except (KeyError, TypeError) as error:
        raise UserError(path, "is not a model file; run `dvc repro train`") from error
    for part, known in (
        ("network", NETWORKS),
        ("likelihood", LIKELIHOODS),
        ("activation", ACTIVATIONS),
    ):
        name = getattr(architecture, part)
        if name not in known:
            raise UserError(
                path, f"has the unknown {part} {name!r}; this version knows {', '.join(known)}"
            )
    model = VAE(architecture)
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise UserError(
            path, "has weights that do not fit its architecture; run `dvc repro train`"
        ) from error
    return model
