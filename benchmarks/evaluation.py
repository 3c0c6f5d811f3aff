"""−log p(x) as it is usually written, with K = 5000 draws from q an image, and as it is found here, with eval_samples
from q widened: the time of each, image for image, and which bound is the tighter one.

`python benchmarks/evaluation.py [ROUNDS]`, in a clone that has data/raw and a trained model. Both take turns on the
same images, a hundred a round, so that a machine that drifts does so for both. Then, on the first 1,000 test images,
the bound against that of K = 10,000 plain draws; and on every 50th, how much lower that of 20,000 widened ones is.
On a machine with a GPU all of it is done there. Prints medians, and JSON on the last line.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from measure import hardware  # noqa: E402

from pipeline.params import load_params  # noqa: E402
from pipeline.runtime.device import prepare_device  # noqa: E402
from pipeline.evaluation.importance import log_weights, neg_log_mean  # noqa: E402
from pipeline.evaluation.bounds import in_order  # noqa: E402
from pipeline.data.mnist import load_images, to_unit  # noqa: E402
from pipeline.model.vae import VAE, load_model  # noqa: E402

IMAGES = 100  # a round
AT_A_TIME = 10
USUAL, MANY, MOST = 5_000, 10_000, 20_000  # draws


@torch.no_grad()
def usual(model: VAE, x: Tensor, num_samples: int) -> Tensor:
    """[N] bounds, on the CPU, an image at a time: K × 784 numbers are what the caches of a CPU hold best."""
    found = []
    for image in x:
        mu, log_var = model.encode(image.unsqueeze(0))
        q = Normal(mu, torch.exp(0.5 * log_var))
        z = q.sample((num_samples,)).squeeze(1)
        p = torch.sigmoid(model.decode(z))
        log_x = -F.binary_cross_entropy(p, image.expand_as(p), reduction="none").sum(dim=-1)
        log_w = log_x + Normal(0.0, 1.0).log_prob(z).sum(dim=-1) - q.log_prob(z).sum(dim=-1)
        found.append(math.log(num_samples) - log_w.logsumexp(dim=0))
    return torch.stack(found).cpu()


def found_here(model: VAE, x: Tensor, num_samples: int, scale: float) -> Tensor:
    """[N] bounds, on the CPU, as the evaluation finds them: a few images at a time on each core, or all on a GPU."""

    threads = torch.get_num_threads()  # before they are given one each

    def bounds(first: int) -> Tensor:
        return neg_log_mean(log_weights(model, x[first : first + AT_A_TIME], num_samples, scale=scale))

    if x.device.type != "cpu":
        return neg_log_mean(log_weights(model, x, num_samples, scale=scale))
    return torch.cat(list(in_order(bounds, range(0, len(x), AT_A_TIME), lambda: threads)))


def timed(bound: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and the bounds: those are on the CPU, so a GPU has done its work by then."""
    start = time.perf_counter()
    found = bound()
    return time.perf_counter() - start, found


def paired(one: Tensor, other: Tensor) -> dict[str, float]:
    """How much lower the first bound is, in nats per image."""
    gap = (one - other).double()
    return {"difference": gap.mean().item(), "se": gap.std().item() / math.sqrt(len(gap))}


def main() -> None:
    """Take turns, then compare the bounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    params = load_params(ROOT / "params.yaml")
    device = prepare_device("auto", said_in="this machine")
    model = load_model(ROOT / "data/model/vae.safetensors")[0].to(device)
    x = to_unit(load_images(ROOT / "data/raw", "test").to(device))
    k, scale = params.eval_samples, params.eval_proposal_scale
    torch.manual_seed(0)
    print(f"{rounds} rounds of {IMAGES} images; {torch.get_num_threads()} threads")
    times, bounds = [], []
    for turn in range(rounds):
        some = x[turn * IMAGES : (turn + 1) * IMAGES]
        ours, tight = timed(lambda some=some: found_here(model, some, k, scale))
        theirs, loose = timed(lambda some=some: usual(model, some, USUAL))
        times.append((ours, theirs))
        bounds.append((tight, loose))
        print(f"round {turn + 1}: {ours:.2f} s against {theirs:.2f} s, a ratio of {theirs / ours:.1f}")
    ratio = statistics.median(theirs / ours for ours, theirs in times)
    usually = paired(*(torch.cat(column) for column in zip(*bounds, strict=True)))
    print(f"K = {USUAL} as usually written takes {ratio:.1f} times as long as K = {k} from {scale} σ (median)")
    print("whose bound is lower by {:.3f} ± {:.3f} nats".format(-usually["difference"], usually["se"]))

    widened = neg_log_mean(log_weights(model, x[:1000], k, scale=scale))
    plain = neg_log_mean(log_weights(model, x[:1000], MANY))
    many = paired(widened, plain)
    print(f"on 1,000 images: {widened.mean():.3f} against {plain.mean():.3f} from K = {MANY} plain draws:", end=" ")
    print("lower by {:.3f} ± {:.3f} nats".format(-many["difference"], many["se"]))

    most = log_weights(model, x[::50], MOST, scale=scale)
    left = paired(neg_log_mean(most), neg_log_mean(most, k))
    print(
        f"on every 50th image {MOST} widened draws lower it by {-left['difference']:.2f} ± {left['se']:.2f} nats more"
    )
    print(json.dumps({
        "hardware": hardware(device), "eval_samples": k, "eval_proposal_scale": scale, "images_a_round": IMAGES,
        "seconds": {"ours": [ours for ours, _ in times], f"usual_{USUAL}": [theirs for _, theirs in times]},
        "ratio_median": ratio, f"against_usual_{USUAL}": usually,
        f"against_plain_{MANY}_on_1000": many | {"widened": widened.mean().item(), "plain": plain.mean().item()},
        f"widened_{MOST}_against_ours_on_200": left,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
