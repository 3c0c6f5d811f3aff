"""Training as a generator: Adam on −ELBO, one record per epoch.

An epoch depends on the weights, Adam's moments and its own number alone, so a resumed training ends
in the same bits as one that was never interrupted. The dataset stays on the device as bytes. The
order and noise of an epoch are drawn at its start, and nothing is read back before its end, so a
GPU never waits for the CPU.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.data.datasets import Split
from pipeline.model.network import Batch, to_batch
from pipeline.model.objective import ElboTerms, elbo_terms
from pipeline.model.vae import VAE
from pipeline.runtime.device import one_thread
from pipeline.runtime.randomness import PROTOCOL_SEED, permutation, standard_normal
from pipeline.training.optimizer import Optimizer

VALIDATION_BATCH = 1000
COLUMNS = (
    "epoch",
    *(f"{split}/{term}" for split in ("train", "val") for term in (*ElboTerms._fields, "neg_elbo")),
)

Record = dict[str, float]
# Sets the gradients of the working model to those of the sum of −ELBO over a batch with noise ε,
# and returns the terms. The sum, as in the original script, and not the mean: Adam's epsilon then
# matters less.
Gradient = Callable[[Batch, Tensor], ElboTerms]


class DivergenceError(Exception):
    """The loss or a weight is not finite in `step`, counted from 1; 0 is the validation."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"not finite in epoch {epoch}, step {step}")
        self.epoch = epoch
        self.step = step


def fit(
    optimizer: Optimizer,
    train: Split,
    val: Split,
    *,
    num_epochs: int,
    batch_size: int,
    seed: int,
    epochs_done: int = 0,
    report: Callable[[str], None] = print,
) -> Iterator[Record]:
    """Train the optimizer's model in place; yield a record with COLUMNS after every epoch.

    The epochs are those from `epochs_done` + 1 to `num_epochs`.
    train, val: on the device of the model. `val` may be empty; its columns are then NaN. A record
    has the means over images, in nats. `train/...` are of the estimates that the steps of the epoch
    used, `val/...` use the same noise after each epoch. The last batch of an epoch may be smaller;
    no image is dropped. Raises DivergenceError at the end of an epoch in which the loss or a weight
    is no longer finite.
    """
    model = optimizer.model
    gradient = autograd_gradient(optimizer.working)

    def train_steps(images: Tensor, labels: Tensor, eps: Tensor) -> ElboTerms:
        terms = []
        for part in zip(
            images.split(batch_size), labels.split(batch_size), eps.split(batch_size), strict=True
        ):
            terms.append(gradient(to_batch(*part[:2], model.device), part[2]))
            optimizer.step()
        return _concatenate(terms)

    shuffled = torch.empty_like(train.images)
    order, eps = _draw_epoch(len(train.images), model.z_dim, seed, epochs_done + 1)
    for epoch in range(epochs_done + 1, num_epochs + 1):
        order = order.to(model.device)
        torch.index_select(train.images, 0, order, out=shuffled)
        terms = train_steps(shuffled, train.labels[order], eps.to(model.device))
        # A GPU computes the epoch meanwhile.
        order, eps = _draw_epoch(len(train.images), model.z_dim, seed, epoch + 1)
        _check_finite(model, terms, epoch, batch_size)
        record = {"epoch": epoch, **_means("train", terms), **_means("val", _validate(model, val))}
        if len(val.images) and not math.isfinite(record["val/neg_elbo"]):
            raise DivergenceError(epoch, step=0)
        yield record


def autograd_gradient(model: VAE) -> Gradient:
    """The gradient of the loss in model/objective.py, by definition."""

    @torch.enable_grad()
    def gradient(batch: Batch, eps: Tensor) -> ElboTerms:
        model.zero_grad(set_to_none=True)
        terms = elbo_terms(model, batch, eps)
        terms.neg_elbo.sum().backward()
        return ElboTerms(*(term.detach() for term in terms))

    return gradient


def max_threads(model: VAE) -> int:
    """The number of CPU threads up to which training gives the same bits.

    With more than two, MKL adds up in another order at some shapes. For layers other than those of
    a perceptron, and for odd widths, not even two are known to be safe.
    """
    layers = [module for module in model.modules() if not list(module.children())]
    widths = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    perceptron = all(
        isinstance(layer, nn.Linear) or not list(layer.parameters()) for layer in layers
    )
    return 2 if perceptron and all(width % 2 == 0 for width in widths) else 1


def _draw_epoch(n: int, z_dim: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of the images of an epoch, and their noise in that order."""
    order = permutation(n, seed, "shuffle", epoch)
    return order, standard_normal((n, z_dim), seed, "noise", epoch)


def _check_finite(model: VAE, terms: ElboTerms, epoch: int, batch_size: int) -> None:
    broken = terms.neg_elbo.isfinite().logical_not().nonzero()
    if len(broken):
        raise DivergenceError(epoch, int(broken[0]) // batch_size + 1)
    weights_finite = torch.stack([weights.isfinite().all() for weights in model.parameters()])
    if not weights_finite.all():
        raise DivergenceError(epoch, math.ceil(len(terms.neg_elbo) / batch_size))


@torch.no_grad()
def _validate(model: VAE, val: Split) -> ElboTerms:
    if not len(val.images):
        return ElboTerms(*(torch.empty(0) for _ in ElboTerms._fields))
    eps = standard_normal((len(val.images), model.z_dim), PROTOCOL_SEED, "validate").to(
        model.device
    )
    parts = [values.split(VALIDATION_BATCH) for values in (val.images, val.labels, eps)]
    with one_thread():
        return _concatenate(
            [
                elbo_terms(model, to_batch(x, y, model.device), e)
                for x, y, e in zip(*parts, strict=True)
            ]
        )


def _concatenate(batches: list[ElboTerms]) -> ElboTerms:
    return ElboTerms(*(torch.cat(values) for values in zip(*batches, strict=True)))


def _means(split: str, terms: ElboTerms) -> Record:
    values = {**terms._asdict(), "neg_elbo": terms.neg_elbo}
    return {f"{split}/{name}": _mean(value) for name, value in values.items()}


def _mean(values: Tensor) -> float:
    # NumPy adds in float64 on one thread: the same bits for any number of threads.
    return float(values.cpu().numpy().mean(dtype="float64")) if len(values) else math.nan
