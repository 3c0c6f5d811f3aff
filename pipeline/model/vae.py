"""The variational autoencoder of Kingma & Welling (2014), and its file.

The header of a model file has everything that is needed to rebuild the model.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.model.network import NETWORKS, Architecture, Batch, Posterior
from pipeline.runtime.finite import check_finite
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
        mu, log_var = self.network.encode(Batch(batch.x.to(self.dtype), batch.y))
        return Posterior(mu.to(batch.x.dtype), log_var.to(batch.x.dtype))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Z [..., Z] and labels y [...] → parameters of p(x|z), [..., O]."""
        labels = None if y is None else y.reshape(-1)
        outputs = self.network.decode(z.to(self.dtype).reshape(-1, self.z_dim), labels)
        return outputs.reshape(*z.shape[:-1], -1).to(z.dtype)

    def mean(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x|z], [..., D] in [0, 1]. Raises DivergenceError if it is not finite."""
        images = self.likelihood.mean(self.decode(z, y))
        check_finite(images, "E[x|z]")
        return images


def new_vae(architecture: Architecture, seed: int) -> VAE:
    """An untrained model on the CPU; the initial weights of every layer depend on `seed` alone."""
    with seeded(seed, "init"):
        return VAE(architecture)


def save_vae(model: VAE, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the weights, with the architecture and `provenance`, what decided them, as header."""
    header = {"architecture": asdict(model.architecture), "provenance": dict(provenance)}
    write_tensors(path, model.state_dict(), header)


def load_vae(path: Path) -> VAE:
    """Load a model file on the CPU.

    Raises UserError if it is none, or if this version does not know its network or likelihood.
    """
    try:
        described = read_header(path)["architecture"]
        shape = tuple(described["image_shape"])
        model = VAE(Architecture(**described | {"image_shape": shape}))
        model.load_state_dict(read_tensors(path))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        message = f"does not fit this version of the code ({reason}); run `dvc repro train`"
        raise UserError(path, message) from error
    return model.eval()
