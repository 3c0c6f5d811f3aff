"""Training as a generator: Adam on −ELBO, one record an epoch; whoever iterates decides what to do with it.

An epoch depends on the weights, Adam's moments and its own number, on nothing else that came before: a training goes on
from `training_state` as if it had never been interrupted.

The data set is one tensor of bytes on the device. An epoch's order and noise are drawn at once from their own address
(see randomness.py), and nothing is read back from the device before the epoch's end, so a GPU is never waited for; on
CUDA the steps of an epoch are one graph (see graph.py).
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipeline.training.adam import Adam
from pipeline.runtime.device import one_thread
from pipeline.training.accelerated.gradient import gradient_of
from pipeline.training.accelerated.cuda_graph import Graphs
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE
from pipeline.model.objective import ElboTerms, elbo_terms
from pipeline.runtime.randomness import PROTOCOL_SEED, permutation, standard_normal

VAL_BATCH = 1000
GRAPH_STEPS = 512  # at most in one CUDA graph, whose memory grows with them
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Record = dict[str, float]


class DivergenceError(Exception):
    """The loss, or a weight, is not finite; `step` counts from 1 in the epoch, 0 is the validation after it."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"not finite in epoch {epoch}, step {step}")
        self.epoch, self.step = epoch, step


def new_optimizer(model: VAE, learning_rate: float, precision: str = "float32") -> Adam:
    """Adam over the parameters of `model`, whose matrix products are taken in `precision`, a key of PRECISIONS."""
    return Adam(model, learning_rate, PRECISIONS[precision])


def training_state(model: VAE, optimizer: Adam) -> dict[str, Tensor]:
    """Everything of the past that the next epoch depends on, on the CPU: weights, and Adam's moments and step count."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {f"optimizer.{name}": tensor for name, tensor in optimizer.state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in (weights | moments).items()}


def restore_training(model: VAE, optimizer: Adam, state: Mapping[str, Tensor]) -> None:
    """Put back what `training_state` gave. Raises KeyError or RuntimeError where it is another model's."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for key, tensor in state.items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    model.load_state_dict(parts["model"])
    optimizer.restore(parts["optimizer"])


def fit(
    model: VAE,
    optimizer: Adam,
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

    On a CPU it takes the threads that PyTorch has at the time, which are to be no more than `most_threads(model)`.

    A record holds `epoch` (from 1) and the means over images of recon, kl and neg_elbo, in nats: `train/…` of the
    estimates that the steps of the epoch used, `val/…` at its end, with the same noise each time (NaN if `val` is
    empty). The last batch of an epoch may be smaller; no image is dropped.
    """
    gradient = gradient_of(optimizer.working)

    @torch.inference_mode()  # of no_grad too each operation costs something
    def steps(images: Tensor, eps: Tensor) -> ElboTerms:
        terms = []
        for batch, batch_eps in zip(images.split(batch_size), eps.split(batch_size), strict=True):
            terms.append(gradient(batch, batch_eps))
            optimizer.step()
        return _joined(terms)

    run = Graphs(steps, optimizer.tensors) if train.device.type == "cuda" else steps
    images = torch.empty_like(train)
    order, noise = _drawn(len(train), model.z_dim, seed, done + 1)
    for epoch in range(done + 1, num_epochs + 1):
        torch.index_select(train, 0, order.to(train.device), out=images)
        parts = (whole.split(batch_size * GRAPH_STEPS) for whole in (images, noise.to(train.device)))
        terms = _joined([run(*part) for part in zip(*parts, strict=True)])
        order, noise = _drawn(len(train), model.z_dim, seed, epoch + 1)  # while a GPU is still at it
        _check(optimizer, terms, epoch, batch_size)
        with one_thread():
            validated = _means("val", _joined(list(_validate(model, val))))
        if len(val) and not math.isfinite(validated["val/neg_elbo"]):
            raise DivergenceError(epoch, 0)
        yield {"epoch": epoch} | _means("train", terms) | validated


def _drawn(n: int, z_dim: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of an epoch's images, and their noise in that order."""
    return permutation(n, seed, "shuffle", epoch), standard_normal((n, z_dim), seed, "noise", epoch)


@torch.no_grad()
def _check(optimizer: Adam, terms: ElboTerms, epoch: int, batch_size: int) -> None:
    # Once an epoch, so that a GPU is not waited for at every step; which one it was can be read from the losses.
    wrong = terms.neg_elbo.isfinite().logical_not().nonzero()
    if len(wrong):
        raise DivergenceError(epoch, int(wrong[0]) // batch_size + 1)
    if not torch.stack([weights.isfinite().all() for weights in optimizer.weights]).all():
        raise DivergenceError(epoch, math.ceil(len(terms.kl) / batch_size))


@torch.no_grad()
def _validate(model: VAE, val: Tensor) -> Iterator[ElboTerms]:
    eps = standard_normal((len(val), model.z_dim), PROTOCOL_SEED, "validate").to(val.device)
    for images, batch_eps in zip(val.split(VAL_BATCH), eps.split(VAL_BATCH), strict=True):
        yield elbo_terms(model, to_unit(images), batch_eps)


def _joined(batches: list[ElboTerms]) -> ElboTerms:
    return ElboTerms(*(torch.cat(values) for values in zip(*batches, strict=True)))


def _means(split: str, terms: ElboTerms) -> Record:
    recon, kl = _mean(terms.recon), _mean(terms.kl)
    return {f"{split}/recon": recon, f"{split}/kl": kl, f"{split}/neg_elbo": recon + kl}


def _mean(values: Tensor) -> float:
    # NumPy adds in float64 and on one thread: the same bits whatever the number of threads.
    return float(values.cpu().numpy().mean(dtype="float64")) if len(values) else math.nan
