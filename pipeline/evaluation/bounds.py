"""−ELBO and −log p(x) of a VAE on a split, one value per image, so that runs compare in pairs.

The noise is always the same; for −log p(x), that of an image depends on no other image. On the CPU
every matrix product runs on one thread, because its bits may depend on how many threads share it;
cores are used by computing several chunks of images at a time.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.datasets import Split, binarize
from pipeline.evaluation import importance
from pipeline.evaluation.reconstruction import Recons
from pipeline.model.network import Posterior, to_batch
from pipeline.model.objective import ElboTerms, draw, elbo_terms
from pipeline.model.vae import VAE
from pipeline.runtime.device import one_thread, pinned, send
from pipeline.runtime.finite import check_finite
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal

T = TypeVar("T")

BATCH = 1000
# A chunk of `nll_bounds`: on a CPU small enough for all cores to finish at about the same time.
DRAWS = {"cpu": 25_000, "cuda": 100_000, "mps": 100_000}
MAX_IMAGES = 500


class NllBounds(NamedTuple):
    """Upper bounds of −log p(x) in nats, [N, len(ks)] for the K of `sample_sizes`, on the CPU."""

    widened: Tensor  # z from q with a widened σ
    plain: Tensor  # z from q: the bound of IWAE
    binarized: Tensor  # [N], of −log p(b) for the binarization b of x, from all widened draws
    ess: Tensor  # [N], effective sample size of all widened draws


@one_thread()
@torch.no_grad()
def elbo(model: VAE, split: Split) -> tuple[ElboTerms, Tensor, Posterior]:
    """(−ELBO, squared error per pixel, q(z|x)) of each image, on the CPU.

    One z ~ q(z|x) is sampled per image. At z = μ the value would be about 10 nats lower, and is no
    bound.
    """
    eps = evaluation_noise(len(split.images), model.z_dim).unsqueeze(1).to(model.device)
    terms, errors, posteriors = [], [], []
    for chosen in torch.arange(len(split.images)).split(BATCH):
        batch = to_batch(split[chosen], model.device)
        terms.append(elbo_terms(model, batch, eps[chosen]))
        posterior, z = draw(model, batch, eps[chosen])
        posteriors.append(posterior)
        errors.append((model.mean(z, batch.y).squeeze(1) - batch.x).square().mean(dim=-1))
    mse = torch.cat(errors).cpu()
    return ElboTerms(*concatenate(terms)), mse, Posterior(*concatenate(posteriors))


@one_thread()
@torch.no_grad()
def encode(model: VAE, split: Split) -> Posterior:
    """q(z|x) of each image, on the CPU."""
    chunks = torch.arange(len(split.images)).split(BATCH)
    batches = (to_batch(split[chosen], model.device) for chosen in chunks)
    return Posterior(*concatenate(map(model.encode, batches)))


def evaluation_noise(n: int, z_dim: int) -> Tensor:
    """ε [n, z_dim] of the one z per image that −ELBO is measured with."""
    return standard_normal((n, z_dim), PROTOCOL_SEED, "evaluate")


def sample_sizes(num_samples: int) -> list[int]:
    """1, 10, 100, … below `num_samples`, and `num_samples`: the K at which bounds are reported."""
    powers = [10**power for power in range(9)]
    return [*(power for power in powers if power < num_samples), num_samples]


def nll_bounds(
    model: VAE, split: Split, recons: Recons, proposal: tuple[int, float], workers: int
) -> NllBounds:
    """Bounds of −log p(x) of each image by importance sampling, with a progress bar.

    proposal: (K, scale) for K draws per image from N(μ, (scale σ)²).

    On the CPU `workers` chunks are computed at a time. Results do not depend on it, nor on the
    number of threads that PyTorch is set to.
    """
    device, (num_samples, scale) = model.device, proposal
    binary_split = replace(split, images=binarize(split.images))
    log_w = partial(importance.log_weights, model)
    step = min(max(1, DRAWS[device.type] // num_samples), MAX_IMAGES)

    def numbers(first: int) -> range:
        return range(first, min(first + step, len(split.images)))

    def draw_noise(first: int) -> Tensor:
        return pinned(importance.noise(num_samples, model.z_dim, numbers(first)), device)

    ahead: dict[int, Tensor] = {}

    def compute(first: int) -> NllBounds:
        images = numbers(first)
        chosen = slice(images.start, images.stop)
        eps = send(ahead.pop(first) if first in ahead else draw_noise(first), device)
        gray, binary = (to_batch(of[chosen], device) for of in (split, binary_split))
        gray = importance.draw_labels(model, gray, num_samples, images)
        binary = binary._replace(y=gray.y)
        if torch.equal(gray.x, binary.x):
            widened, binarized = log_w(gray, eps, recons.gray, recons.binary, scale=scale)
        else:
            (widened,) = log_w(gray, eps, recons.gray, scale=scale)
            (binarized,) = log_w(binary, eps, recons.binary, scale=scale)
        (plain,) = [widened] if scale == 1 else log_w(gray, eps, recons.gray)
        neg_log_b = importance.neg_log_mean(binarized, num_samples)
        ess = importance.effective_sample_size(widened)
        results = NllBounds(_bounds(widened), _bounds(plain), neg_log_b, ess)
        if device.type != "cpu":  # a GPU computes until its results are read
            ahead[first + step] = draw_noise(first + step)
        return NllBounds(*(each.cpu() for each in results))

    starts = range(0, len(split.images), step)
    return NllBounds(*concatenate(in_order(compute, starts, device, workers)))


@one_thread()
def prior_bounds(model: VAE, split: Split, recons: Recons, num_samples: int) -> Tensor:
    """The bounds of −log p(x) with draws from the prior, [N, len(ks)], on the CPU."""
    bounds = torch.empty(len(split.images), len(sample_sizes(num_samples)))
    for chosen in torch.arange(len(split.images)).split(BATCH):
        batch = to_batch(split[chosen], model.device)
        batch = importance.draw_labels(model, batch, num_samples, range(1))
        log_w = importance.prior_log_weights(model, batch, num_samples, recons.gray)
        bounds[chosen] = _bounds(log_w)
    return bounds


def in_order(
    compute: Callable[[int], T], starts: range, device: torch.device, workers: int
) -> Iterator[T]:
    """`compute` of each of `starts`, with a progress bar.

    On the CPU it computes `workers` at a time: PyTorch releases the GIL.
    """
    workers = workers if device.type == "cpu" else 1
    # PyTorch's number of threads is a property of each Python thread.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    unit = f"x{starts.step} images"
    with one_thread(), pool:
        chunks = pool.map(compute, starts)
        yield from tqdm(chunks, "-log p(x)", len(starts), unit=unit, disable=None)


def summary(per_image: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each quantity [N] and, as NAME_se, its standard error over the images.

    Raises DivergenceError if a value is not finite.
    """
    metrics = {}
    for name, values in per_image.items():
        check_finite(values, f"{name} of an image")
        # NumPy adds in float64 on one thread: the same bits with any number of threads.
        numbers = values.double().numpy()
        metrics[name] = float(numbers.mean())
        metrics[f"{name}_se"] = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return metrics


def concatenate(parts: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Concatenate tuples of tensors field by field, on the CPU."""
    return [torch.cat(field).cpu() for field in zip(*parts, strict=True)]


def _bounds(log_w: Tensor) -> Tensor:
    ks = sample_sizes(log_w.shape[1])
    return torch.stack([importance.neg_log_mean(log_w, k) for k in ks], dim=1)
