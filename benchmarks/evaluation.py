"""-log p(x) as usually written and as here: `python -m benchmarks.evaluation [ROUNDS]`.

Time: K = 5,000 draws from q per image against `eval_samples` from q widened, on the same 100 images
per round. Bound: on 1,000 test images against K = 10,000 plain draws, and on every 50th image
against K = 20,000 widened draws. Needs `make repro`. JSON on the last line.
"""

import json
import math
import statistics
import sys
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from benchmarks.measure import ROOT, hardware, rounds_from
from pipeline.data.datasets import Split, load_split
from pipeline.evaluation.bounds import in_order
from pipeline.evaluation.importance import log_weights, neg_log_mean, noise
from pipeline.evaluation.reconstruction import FAST
from pipeline.model.network import to_batch
from pipeline.model.vae import VAE, load_vae
from pipeline.params import load_params
from pipeline.paths import DATASET, MODEL
from pipeline.runtime.device import prepare_device

IMAGES = 100  # per round
AT_A_TIME = 10
USUAL, MANY, MOST = 5_000, 10_000, 20_000  # draws


@torch.no_grad()
def usual(model: VAE, split: Split, num_samples: int) -> Tensor:
    """Bounds [N], one image at a time: K x 784 numbers fit the caches of a CPU best."""
    bounds = []
    for index in range(len(split.images)):
        batch = to_batch(split[index : index + 1], model.device)
        mu, log_var = model.encode(batch)
        q = Normal(mu, torch.exp(0.5 * log_var))
        z = q.sample((num_samples,)).squeeze(1)
        p = torch.sigmoid(model.decode(z, None))
        log_x = -F.binary_cross_entropy(p, batch.x.expand_as(p), reduction="none").sum(dim=-1)
        log_w = log_x + Normal(0.0, 1.0).log_prob(z).sum(dim=-1) - q.log_prob(z).sum(dim=-1)
        bounds.append(math.log(num_samples) - log_w.logsumexp(dim=0))
    return torch.stack(bounds).cpu()


def weights(model: VAE, split: Split, num_samples: int, scale: float) -> Tensor:
    """Log weights [N, K], as the stage `evaluate` computes them."""
    threads = torch.get_num_threads()  # before each worker gets one

    def compute(first: int) -> Tensor:
        batch = to_batch(split[first : first + AT_A_TIME], model.device)
        eps = noise(num_samples, model.z_dim, range(first, first + len(batch.x))).to(model.device)
        (log_w,) = log_weights(model, batch, eps, FAST["bernoulli"].gray, scale=scale)
        return log_w

    starts = range(0, len(split.images), AT_A_TIME)
    return torch.cat(list(in_order(compute, starts, torch.device("cpu"), threads)))


def part(split: Split, chosen: slice) -> Split:
    """The chosen images of a split."""
    return replace(split, images=split.images[chosen], labels=split.labels[chosen])


def compare(one: Tensor, other: Tensor) -> dict[str, float]:
    """The mean difference of two bounds, and its standard error, in nats per image."""
    difference = (one - other).double()
    error = difference.std().item() / math.sqrt(len(difference))
    return {"difference": difference.mean().item(), "se": error}


def main() -> None:
    """Take turns, then compare the bounds."""
    rounds = rounds_from(sys.argv, 5)
    params = load_params(ROOT / "params.yaml")
    k, scale = params.eval_samples, params.eval_proposal_scale
    model = load_vae(ROOT / MODEL).to(prepare_device("auto"))
    split = load_split(ROOT / DATASET, "test")
    torch.manual_seed(0)
    seconds: dict[str, list[float]] = {"ours": [], "usual": []}
    ours, theirs = [], []
    for turn in range(rounds):
        images = part(split, slice(turn * IMAGES, (turn + 1) * IMAGES))
        start = time.perf_counter()
        ours.append(neg_log_mean(weights(model, images, k, scale), k))
        middle = time.perf_counter()
        theirs.append(usual(model, images, USUAL))
        seconds["ours"].append(middle - start)
        seconds["usual"].append(time.perf_counter() - middle)
    pairs = zip(seconds["usual"], seconds["ours"], strict=True)
    ratio = statistics.median(their / our for their, our in pairs)

    first = part(split, slice(1000))
    plain = torch.cat(
        [
            neg_log_mean(weights(model, part(first, slice(i, i + 50)), MANY, 1.0), MANY)
            for i in range(0, len(first.images), 50)
        ]
    )
    most = weights(model, part(split, slice(None, None, 50)), MOST, scale)
    record = {
        "eval_samples": k,
        "eval_proposal_scale": scale,
        "seconds": seconds,
        "ratio_median": ratio,
        f"against_usual_{USUAL}": compare(torch.cat(ours), torch.cat(theirs)),
        f"against_plain_{MANY}_on_1000": compare(
            neg_log_mean(weights(model, first, k, scale), k), plain
        ),
        f"widened_{MOST}_against_ours_on_200": compare(
            neg_log_mean(most, MOST), neg_log_mean(most, k)
        ),
    }
    print(f"K = {USUAL} as usually written takes {ratio:.1f} times as long as K = {k} widened")
    for name, value in record.items():
        if isinstance(value, dict) and "se" in value:
            print(f"{name}: {value['difference']:+.3f} +/- {value['se']:.3f} nats")
    print(json.dumps({"hardware": hardware(model.device), **record}))


if __name__ == "__main__":
    main()
