"""The variational autoencoder of Kingma & Welling (2014), and its file.

The header of a model file has everything that is needed to rebuild the model.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, is_out_of_memory
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.model.network import NETWORKS, Architecture, Batch, Posterior
from pipeline.model.prior import PRIORS, Distribution
from pipeline.runtime.finite import check_finite
from pipeline.runtime.randomness import seeded
from pipeline.runtime.tensor_file import read_header, read_tensors, write_tensors


class VAE(nn.Module):
    """A network, a likelihood and a prior.

    Matrix products use the dtype of the weights, everything else that of the input.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.z_dim = architecture.z_dim
        likelihood = LIKELIHOODS[architecture.likelihood](architecture)
        num_outputs = likelihood.num_outputs(architecture.num_pixels)
        self.network = NETWORKS[architecture.network](architecture, num_outputs)
        self.likelihood = likelihood
        self.prior = PRIORS[architecture.prior](architecture)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights of the network, which are the first."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def label_nats(self) -> float:
        """KL(label known ‖ uniform): log C for a conditional model of C classes, else 0."""
        return math.log(self.architecture.num_classes or 1)

    def encode(self, batch: Batch) -> Posterior:
        """Images [B, D] → q(z|x)."""
        mu, log_var = self.network.encode(Batch(batch.x.to(self.dtype), batch.y))
        return Posterior(mu.to(batch.x.dtype), log_var.to(batch.x.dtype))

    def p_z(self) -> Distribution:
        """p(z) with the present weights."""
        return self.prior(lambda x: self.encode(Batch(x)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Z [..., Z] → parameters of p(x|z), [..., O]; y: labels, of the first dimensions of z."""
        if y is not None:
            y = y.view(*y.shape, *[1] * (z.dim() - 1 - y.dim())).expand(z.shape[:-1]).reshape(-1)
        outputs = self.network.decode(z.to(self.dtype).reshape(-1, self.z_dim), y)
        return outputs.reshape(*z.shape[:-1], -1).to(z.dtype)

    def neg_log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """−log p(x|z) for S draws of z per image: [B, S, Z] → [B, S], in nats."""
        return self.likelihood.neg_log_prob(self.decode(z, batch.y), batch.x.unsqueeze(1))

    def mean(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x|z], [..., D] in [0, 1]. Raises DivergenceError if it is not finite."""
        images = self.likelihood.mean(self.decode(z, y))
        check_finite(images, "E[x|z]")
        return images


def new_vae(architecture: Architecture, seed: int) -> VAE:
    """An untrained model on the CPU, in evaluation mode.

    The initial weights of every layer depend on `seed` alone.
    """
    with seeded(seed, "init"):
        return VAE(architecture).eval()


def save_vae(model: VAE, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the weights, with the architecture and `provenance`, what decided them, as header."""
    header = {"architecture": describe(model.architecture), "provenance": dict(provenance)}
    write_tensors(path, model.state_dict(), header)


def describe(architecture: Architecture) -> dict[str, Any]:
    """The fields that are not at their default: files from before a field was added stay equal."""
    chosen = ((field, getattr(architecture, field.name)) for field in fields(architecture))
    return {field.name: value for field, value in chosen if value != field.default}


def load_vae(path: Path) -> VAE:
    """Load a model file on the CPU.

    Raises UserError if it is none, or if this version does not know its network or likelihood.
    """
    try:
        described = read_header(path)["architecture"]
        shape = tuple(described["image_shape"])
        model = VAE(Architecture(**described | {"image_shape": shape}))
        model.load_state_dict(read_tensors(path))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        message = f"does not fit this version of the code ({reason}); run `dvc repro train`"
        raise UserError(path, message) from error
    return model.eval()
