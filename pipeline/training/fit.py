"""Training as a generator: Adam on −ELBO, one record per epoch.

An epoch depends on the weights, Adam's moments and its own number alone, so a resumed training ends
in the same bits as one that was not interrupted. The dataset stays on the device as bytes. The
order and noise of an epoch are drawn before it starts, and nothing is read back before its end, so
a GPU does not wait for the CPU within an epoch.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from pipeline.data.datasets import Split, above, thresholds, to_unit
from pipeline.errors import is_gpu_failure, is_out_of_memory
from pipeline.model.network import Batch, to_batch
from pipeline.model.objective import NEG_ELBO, ElboTerms, Objective, elbo_terms
from pipeline.model.vae import VAE
from pipeline.runtime.device import float32_products, limited_threads, one_thread, pinned, send
from pipeline.runtime.finite import DivergenceError, check_finite
from pipeline.runtime.randomness import PROTOCOL_SEED, permutation, seeded, standard_normal
from pipeline.training.best_epoch import BestEpoch
from pipeline.training.gradient import AutogradGradient, Gradient
from pipeline.training.optimizer import Optimizer

VALIDATION_BATCH = 1000
# Steps at a time, at most. On a GPU they are one graph, whose memory grows with them, and what the
# history needs is computed for all of their images. On a CPU a batch stays in the caches.
STEPS = {"cpu": 1, "cuda": 512, "mps": 512}
PIXELS = 1 << 26  # at a time, at most: 268 MB as float32, of which a graph has about five
TERMS = (*(field for field in ElboTerms._fields if field != "loss"), "neg_elbo")

Record = dict[str, float]
Report = Callable[[str], None]
Steps = Callable[[Tensor, Tensor, Tensor], ElboTerms]  # images [N, D], labels [N], ε [N, S, Z]


def columns(objective: Objective, lr_schedule: str = "constant") -> list[str]:
    """The columns of history.csv.

    The loss has one if the objective is not the default, the learning rate if it changes.
    """
    trained = TERMS if objective == NEG_ELBO else (*TERMS, "loss")
    first = ["epoch"] if lr_schedule == "constant" else ["epoch", "lr"]
    return [*first, *(f"train/{term}" for term in trained), *(f"val/{term}" for term in TERMS)]


def fit(
    optimizer: Optimizer, train: Split, val: Split, epochs: range, *, batch_size: int, seed: int,
    objective: Objective = NEG_ELBO, binarize: bool = False, best: BestEpoch | None = None,
    report: Report = print,
) -> Iterator[Record]:  # fmt: skip
    """Train the optimizer's model in place; yield a record with `columns` after every epoch.

    epochs: their numbers, the first of a training being 1. In a resumed training those that the
    state of the optimizer does not include.
    best: may stop the training; after the last epoch the model has the weights of the best one.
    train, val: on the device of the model. `val` may be empty; its columns are then NaN.
    A record has the means over images, in nats. `train/...` are of the estimates that the steps of
    the epoch used, `val/...` use the same noise after each epoch. The last batch of an epoch may be
    smaller; no image is dropped.
    binarize: draw every training pixel as black or white, again in every epoch.
    On a CPU the bits do not depend on the number of threads.
    Raises DivergenceError, with epoch and step, at the end of an epoch in which the loss or a
    weight is no longer finite, and after the last if the variances of q(z|x) are not.
    """
    model, device = optimizer.model, optimizer.model.device
    best = best or BestEpoch(model)
    shape = (len(train.images), objective.num_samples, model.z_dim)
    draw = partial(_draw_epoch, shape, train.images.shape if binarize else (0,), seed, device)
    order, eps, limits = draw(epochs.start)
    val_shape = (len(val.images), 1, model.z_dim)
    val_eps = standard_normal(val_shape, PROTOCOL_SEED, "validate").to(device)
    with float32_products(optimizer.precision):
        gradient = _choose_gradient(optimizer, objective, train, batch_size, report)
    steps = _as_graphs(_training_steps(optimizer, gradient, batch_size), optimizer, batch_size)
    shuffled = torch.empty_like(train.images)
    most = PIXELS // (batch_size * train.images.shape[1])
    part_size = batch_size * max(1, min(STEPS[device.type], most))
    for epoch in epochs:
        if best.stops(epoch - 1):
            reason = f"no better validation for {best.patience} epochs"
            report(f"stopped after epoch {epoch - 1}: {reason}")
            return
        rate = optimizer.begin_epoch(epoch)
        gradient.kl_weight.fill_(objective.kl_weight(epoch))
        order, eps, limits = (send(each, device) for each in (order, eps, limits))
        _shuffle(train.images, limits, order, shuffled)
        data = (shuffled, train.labels[order], eps)
        parts = zip(*(tensor.split(part_size) for tensor in data), strict=True)
        # The seed is for layers that draw themselves, such as dropout.
        with (
            limited_threads(gradient.max_threads),
            float32_products(optimizer.precision),
            seeded(seed, "layers", epoch),
        ):
            optimizer.working.train()
            terms = ElboTerms(*_concatenate([steps(*part) for part in parts]))
        model.eval()
        if epoch != epochs[-1]:
            order, eps, limits = draw(epoch + 1)  # while a GPU is still busy
        _check_finite(model, terms, epoch, batch_size)
        means = _means("train", terms) | _means("val", _validate(model, val, val_eps, epoch))
        means |= {"epoch": epoch, "lr": rate}
        record = {name: means[name] for name in columns(objective, optimizer.lr_schedule)}
        best.update(epoch, record["val/neg_elbo"])
        if epoch == epochs[-1] or best.stops(epoch):
            best.load()
            _check_posterior(model, train)
        yield record


def _choose_gradient(
    optimizer: Optimizer, objective: Objective, train: Split, batch_size: int, report: Report
) -> Gradient:
    model = optimizer.model
    batch = to_batch(train[:batch_size], model.device)
    shape = (len(batch.x), objective.num_samples, model.z_dim)
    eps = standard_normal(shape, PROTOCOL_SEED, "check").to(model.device)
    # An error in the objective is raised here, and is no reason for another gradient.
    AutogradGradient(copy.deepcopy(model), objective)(batch, eps)
    try:
        # Optional: whatever is wrong with it, training continues.
        from pipeline.training.accelerated import checked_gradient  # noqa: PLC0415

        return checked_gradient(optimizer, batch, eps, objective)
    except Exception as error:
        if is_out_of_memory(error) or is_gpu_failure(error):
            raise
        report(f"training with autograd, which is slower: {error}")
        return AutogradGradient(optimizer.working, objective)


def _training_steps(optimizer: Optimizer, gradient: Gradient, batch_size: int) -> Steps:
    def steps(images: Tensor, labels: Tensor, eps: Tensor) -> ElboTerms:
        data = gradient.arrange(to_unit(images)), labels.long(), eps
        outputs = []
        for x, y, batch_eps in zip(*(tensor.split(batch_size) for tensor in data), strict=True):
            outputs.append(gradient(Batch(x, y), batch_eps))
            optimizer.step()
        return gradient.terms(data[0], _concatenate(outputs))

    return steps


def _as_graphs(steps: Steps, optimizer: Optimizer, batch_size: int) -> Steps:
    if optimizer.model.device.type == "cuda":
        with suppress(ImportError):
            from pipeline.training.accelerated.cuda_graph import Graphs  # noqa: PLC0415

            return Graphs(steps, optimizer, batch_size)
    return steps


def _draw_epoch(
    shape: tuple[int, int, int], pixels: Sequence[int], seed: int, device: torch.device, epoch: int
) -> tuple[Tensor, ...]:
    """The order of the images of an epoch, their noise [N, S, Z] in that order, and thresholds."""
    order = permutation(shape[0], seed, "shuffle", epoch)
    eps = standard_normal(shape, seed, "noise", epoch)
    limits = thresholds(pixels, seed, "binarize", epoch)
    return tuple(pinned(each, device) for each in (order, eps, limits))


def _shuffle(images: Tensor, limits: Tensor, order: Tensor, shuffled: Tensor) -> None:
    """Write the images in this order, black and white if there are limits."""
    if len(limits):
        images = above(images, limits)
    torch.index_select(images, 0, order, out=shuffled)


def _check_finite(model: VAE, terms: ElboTerms, epoch: int, batch_size: int) -> None:
    broken = terms.loss.isfinite().logical_not().nonzero()
    if len(broken):
        step = int(broken[0]) // batch_size + 1
        raise DivergenceError(f"the loss in epoch {epoch}, step {step},")
    step = math.ceil(len(terms.neg_elbo) / batch_size)
    for name, weights in model.named_parameters():
        check_finite(weights, f"{name} after epoch {epoch}, step {step},")


@torch.no_grad()
def _check_posterior(model: VAE, split: Split) -> None:
    """No later step would show what the last one did to μ, σ² and 1 / σ² of the first images."""
    mu, log_var = model.encode(to_batch(split[:VALIDATION_BATCH], model.device))
    check_finite(mu.square() + log_var.abs().exp(), "q(z|x) after the last epoch")


@one_thread()
@torch.no_grad()
def _validate(model: VAE, val: Split, eps: Tensor, epoch: int) -> ElboTerms:
    if len(eps) == 0:
        return ElboTerms(*(torch.tensor([math.nan]) for _ in ElboTerms._fields))
    starts = range(0, len(eps), VALIDATION_BATCH)
    chunks = [slice(start, start + VALIDATION_BATCH) for start in starts]
    batches = [(to_batch(val[chosen], model.device), eps[chosen]) for chosen in chunks]
    terms = ElboTerms(*_concatenate([elbo_terms(model, *batch) for batch in batches]))
    check_finite(terms.loss, f"the loss in epoch {epoch}, validation,")
    return terms


def _concatenate(batches: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Of each batch the same tensors: one after the other."""
    if len(batches) == 1:
        return batches[0]
    return [torch.cat(values) for values in zip(*batches, strict=True)]


def _means(split: str, terms: ElboTerms) -> Record:
    values = {**terms._asdict(), "neg_elbo": terms.neg_elbo}
    # NumPy adds in float64 on one thread: the same bits for any number of threads.
    means = {name: value.cpu().numpy().mean(dtype="float64") for name, value in values.items()}
    return {f"{split}/{name}": float(mean) for name, mean in means.items()}
