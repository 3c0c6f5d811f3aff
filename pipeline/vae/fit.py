"""Training as a generator: Adam on −ELBO, one record an epoch; whoever iterates decides what to do with it.

The data set is one tensor on the device. An epoch's order and noise are drawn at once from their own address (see
randomness.py), and nothing is read back from the device before the epoch's end, so a GPU is never waited for.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE
from pipeline.vae.objective import ElboTerms, elbo_terms
from pipeline.vae.randomness import PROTOCOL_SEED, permutation, standard_normal

VAL_BATCH = 1000

Record = dict[str, float]


def fit(
    model: VAE,
    train: Tensor,
    val: Tensor,
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Iterator[Record]:
    """Train `model` in place on `train`, uint8 [N, D] on the model's device, and yield a record after every epoch.

    A record holds `epoch` (from 1) and the means over images of recon, kl and neg_elbo, in nats: `train/…` of the
    estimates that the steps of the epoch used, `val/…` at its end, with the same noise each time (NaN if `val` is
    empty). The last batch of an epoch may be smaller; no image is dropped.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    for epoch in range(1, num_epochs + 1):
        order = permutation(len(train), seed, "shuffle", epoch).to(train.device)
        eps = standard_normal((len(train), model.z_dim), seed, "noise", epoch).to(train.device)
        steps = []
        for batch, batch_eps in zip(order.split(batch_size), eps.split(batch_size), strict=True):
            terms = elbo_terms(model, to_unit(train[batch]), batch_eps)
            optimizer.zero_grad()
            terms.neg_elbo.sum().backward()  # the sum, as in the seed: Adam's ε weighs less than for the mean
            optimizer.step()
            steps.append(ElboTerms(terms.recon.detach(), terms.kl.detach()))
        yield {"epoch": epoch} | _means("train", steps) | _means("val", list(_validate(model, val)))


@torch.no_grad()
def _validate(model: VAE, val: Tensor) -> Iterator[ElboTerms]:
    eps = standard_normal((len(val), model.z_dim), PROTOCOL_SEED, "validate").to(val.device)
    for images, batch_eps in zip(val.split(VAL_BATCH), eps.split(VAL_BATCH), strict=True):
        yield elbo_terms(model, to_unit(images), batch_eps)


def _means(split: str, batches: list[ElboTerms]) -> Record:
    recon, kl = (_mean(torch.cat(values)) for values in zip(*batches, strict=True))
    return {f"{split}/recon": recon, f"{split}/kl": kl, f"{split}/neg_elbo": recon + kl}


def _mean(values: Tensor) -> float:
    # NumPy adds in float64 and on one thread: the same bits whatever the number of threads.
    return float(values.cpu().numpy().mean(dtype="float64")) if len(values) else math.nan
