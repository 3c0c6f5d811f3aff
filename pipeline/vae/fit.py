"""Training as a generator: Adam on −ELBO, one record an epoch; whoever iterates decides what to do with it.

An epoch depends on the weights, Adam's moments and its own number, on nothing else that came before: a training goes on
from `training_state` as if it had never been interrupted.

The data set is one tensor on the device. An epoch's order and noise are drawn at once from their own address (see
randomness.py), and nothing is read back from the device before the epoch's end, so a GPU is never waited for.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE
from pipeline.vae.objective import ElboTerms, elbo_terms
from pipeline.vae.randomness import PROTOCOL_SEED, permutation, standard_normal

VAL_BATCH = 1000

Record = dict[str, float]


class DivergenceError(Exception):
    """The loss, or a weight, is not finite; `step` counts from 1 in the epoch, 0 is the validation after it."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"not finite in epoch {epoch}, step {step}")
        self.epoch, self.step = epoch, step


def new_optimizer(model: VAE, learning_rate: float) -> torch.optim.Adam:
    """Adam, with a kernel for a whole step, over the parameters of `model`."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)


def training_state(model: VAE, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Everything of the past that the next epoch depends on, on the CPU: weights, and Adam's moments and step count."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {
        f"optimizer.{index}.{name}": tensor
        for index, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in (weights | moments).items()}


def restore_training(model: VAE, optimizer: torch.optim.Adam, state: Mapping[str, Tensor]) -> None:
    """Put back what `training_state` gave. Raises KeyError, RuntimeError or ValueError where it is another model's."""
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    moments: dict[int, dict[str, Tensor]] = {}
    for key in state.keys() - {f"model.{name}" for name in weights}:
        _, index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = state[key]
    model.load_state_dict(weights)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def fit(
    model: VAE,
    optimizer: torch.optim.Adam,
    train: Tensor,
    val: Tensor,
    *,
    num_epochs: int,
    batch_size: int,
    seed: int,
    done: int = 0,
) -> Iterator[Record]:
    """Train `model` in place on `train`, uint8 [N, D] on the model's device, and yield a record after every epoch.

    Begins after the `done` epochs that model and optimizer have behind them. Raises DivergenceError at the end of an
    epoch in which a loss or a weight stopped being finite.

    A record holds `epoch` (from 1) and the means over images of recon, kl and neg_elbo, in nats: `train/…` of the
    estimates that the steps of the epoch used, `val/…` at its end, with the same noise each time (NaN if `val` is
    empty). The last batch of an epoch may be smaller; no image is dropped.
    """
    for epoch in range(done + 1, num_epochs + 1):
        order = permutation(len(train), seed, "shuffle", epoch).to(train.device)
        eps = standard_normal((len(train), model.z_dim), seed, "noise", epoch).to(train.device)
        steps = []
        for batch, batch_eps in zip(order.split(batch_size), eps.split(batch_size), strict=True):
            terms = elbo_terms(model, to_unit(train[batch]), batch_eps)
            optimizer.zero_grad()
            terms.neg_elbo.sum().backward()  # the sum, as in the seed: Adam's ε weighs less than for the mean
            optimizer.step()
            steps.append(ElboTerms(terms.recon.detach(), terms.kl.detach()))
        _check(model, steps, epoch, batch_size)
        validated = _means("val", list(_validate(model, val)))
        if len(val) and not math.isfinite(validated["val/neg_elbo"]):
            raise DivergenceError(epoch, 0)
        yield {"epoch": epoch} | _means("train", steps) | validated


@torch.no_grad()
def _check(model: VAE, steps: list[ElboTerms], epoch: int, batch_size: int) -> None:
    # Once an epoch, so that a GPU is not waited for at every step; which one it was can be read from the losses.
    wrong = torch.cat([terms.neg_elbo for terms in steps]).isfinite().logical_not().nonzero()
    if len(wrong):
        raise DivergenceError(epoch, int(wrong[0]) // batch_size + 1)
    if not torch.stack([weights.isfinite().all() for weights in model.parameters()]).all():
        raise DivergenceError(epoch, len(steps))


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
