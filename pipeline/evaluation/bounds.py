"""Measuring a VAE on images that it was not trained on: each number per image, so that runs can be compared in pairs.

The noise is always the same, and one image's depends on no other image; how the images are split into chunks changes
no number. On the CPU each product is taken by one thread, for its bits may depend on how many share it: cores are used
by several chunks at a time.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pipeline.evaluation.binarization import binarize, clamped_recon_of_draws
from pipeline.runtime.device import one_thread
from pipeline.evaluation.importance import ROWS, effective_sample_size, log_weights, neg_log_mean, prior_log_weights
from pipeline.model.likelihood import bernoulli_mean, bernoulli_recon
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE, reparameterize
from pipeline.model.objective import gaussian_kl
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal

T = TypeVar("T")

BATCH = 1000
# Images a record of `evidence`, or more where draws are few: on a CPU not many, so that cores end at about one time.
STEP = {"cpu": 50, "cuda": 200, "mps": 200}


class Elbo(NamedTuple):
    """The halves of −ELBO in nats, the mean squared error of a pixel, and q(z|x), of each image, on the CPU."""

    recon: Tensor  # [N]
    kl: Tensor  # [N]
    mse: Tensor  # [N]
    mu: Tensor  # [N, Z]
    log_var: Tensor  # [N, Z]


class Evidence(NamedTuple):
    """Bounds of −log p(x) of each image, in nats, from K draws of z: [N, len(ks)] for the K of `sample_sizes`."""

    widened: Tensor  # drawn from q with its σ widened
    plain: Tensor  # drawn from q: −L_K, the bound of IWAE
    prior: Tensor  # drawn from p(z): naive Monte Carlo
    binarized: Tensor  # [N]: of −log p(b) for the fixed binarization b of x, from all draws, widened
    ess: Tensor  # [N]: effective sample size of all the widened draws


@one_thread()
@torch.no_grad()
def elbo(model: VAE, images: Tensor) -> Elbo:
    """−ELBO of each of `images`, uint8 [N, D].

    One z ~ q(z|x) is *sampled* for an image. At z = μ it would read about 10 nats too good: it is no bound there.
    """
    device = next(model.parameters()).device
    eps = evaluation_noise(len(images), model.z_dim).to(device)
    rows = []
    for batch, batch_eps in zip(images.split(BATCH), eps.split(BATCH), strict=True):
        x = to_unit(batch.to(device))
        mu, log_var = model.encode(x)
        logits = model.decode(reparameterize(mu, log_var, batch_eps))
        mse = (bernoulli_mean(logits) - x).square().mean(dim=-1)
        rows.append((bernoulli_recon(logits, x), gaussian_kl(mu, log_var), mse, mu, log_var))
    return Elbo(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def evaluation_noise(n: int, z_dim: int) -> Tensor:
    """ε [n, z_dim] of the one z an image that −ELBO is measured with."""
    return standard_normal((n, z_dim), PROTOCOL_SEED, "evaluate")


def sample_sizes(num_samples: int) -> list[int]:
    """1, 10, 100, … below `num_samples`, and that: where the bound is read on its way up."""
    return [*(10**power for power in range(9) if 10**power < num_samples), num_samples]


def evidence(
    model: VAE, images: Tensor, num_samples: int, scale: float, workers: Callable[[], int] = lambda: 1
) -> Iterator[Evidence]:
    """−log p(x) of `images`, uint8 [N, D], by importance sampling, STEP of them or more a record, in their order.

    On the CPU `workers()` records, asked again as each is found, are computed at a time. No bit depends on it, nor on
    the number of threads that PyTorch is set to; until the last record is taken that is 1.
    """
    device = next(model.parameters()).device
    ks, step = sample_sizes(num_samples), max(STEP[device.type], ROWS[device.type] // num_samples)
    binary = binarize(images)

    def record(first: int) -> Evidence:
        x, b = (to_unit(some[first : first + step].to(device)) for some in (images, binary))
        widened = log_weights(model, x, num_samples, scale=scale, first=first)
        plain = log_weights(model, x, num_samples, first=first) if scale != 1 else widened
        prior = prior_log_weights(model, x, num_samples)
        binarized = log_weights(model, b, num_samples, scale=scale, first=first, recon=clamped_recon_of_draws)
        return Evidence(
            widened=_bounds(widened, ks),
            plain=_bounds(plain, ks),
            prior=_bounds(prior, ks),
            binarized=neg_log_mean(binarized),
            ess=effective_sample_size(widened),
        )

    starts = range(0, len(images), step)
    return in_order(record, starts, workers) if device.type == "cpu" else map(record, starts)


def in_order(record: Callable[[int], T], starts: Sequence[int], workers: Callable[[], int]) -> Iterator[T]:
    """What `record` makes of each of `starts`, `workers()` at a time: PyTorch computes without Python's lock."""
    found: deque[Future[T]] = deque()
    # Every thread of Python has a number of its own, which others' calls do not change once it is set.
    alone = partial(torch.set_num_threads, 1)
    with one_thread(), ThreadPoolExecutor(max(1, len(starts)), initializer=alone) as pool:
        for start in starts:
            while len(running := [future for future in found if not future.done()]) >= max(1, workers()):
                wait(running, return_when=FIRST_COMPLETED)
            found.append(pool.submit(record, start))
            while found and found[0].done():
                yield found.popleft().result()
        while found:
            yield found.popleft().result()


def _bounds(log_w: Tensor, ks: list[int]) -> Tensor:
    return torch.stack([neg_log_mean(log_w, k) for k in ks], dim=1)


def summary(per_image: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each quantity, [N], and as NAME_se the standard error of that mean over the images."""
    found = {}
    for name, values in per_image.items():
        # NumPy adds in float64 and on one thread: the same bits whatever the number of threads.
        numbers = values.double().numpy()
        found[name] = float(numbers.mean())
        found[f"{name}_se"] = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return found
