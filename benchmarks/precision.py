"""What bfloat16 costs: −ELBO on the test split after ten epochs in float32 and in bfloat16, for three seeds.

`python benchmarks/precision.py [EPOCHS]`, in a clone that has data/raw; the default model on all 60,000 training
images. Prints the values and the paired difference, and JSON on the last line.
"""

import json
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from measure import hardware  # noqa: E402
from training import PARAMS, new_model  # noqa: E402

from pipeline.runtime.device import prepare_device  # noqa: E402
from pipeline.training.fit import PRECISIONS, fit, new_optimizer  # noqa: E402
from pipeline.evaluation.bounds import elbo  # noqa: E402
from pipeline.data.mnist import load_images  # noqa: E402

SEEDS = (0, 1, 2)


def neg_elbo(train: torch.Tensor, test: torch.Tensor, precision: str, seed: int, num_epochs: int) -> float:
    """In nats per test image."""
    model = new_model(train.device, seed)
    optimizer = new_optimizer(model, PARAMS.learning_rate, precision)
    for _ in fit(
        model, optimizer, train, train[:0], num_epochs=num_epochs, batch_size=PARAMS.batch_size, seed=seed
    ):  # fmt: skip
        pass
    found = elbo(model, test)
    return float((found.recon + found.kl).double().mean())


def main() -> None:
    """Train, print a line a seed."""
    num_epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    device = prepare_device("auto", said_in="this machine")
    train, test = (load_images(ROOT / "data/raw", split) for split in ("train", "test"))
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for seed in SEEDS:
        for precision, values in found.items():
            values.append(neg_elbo(train.to(device), test, precision, seed, num_epochs))
        print(f"seed {seed}: " + ", ".join(f"{values[-1]:.2f} in {precision}" for precision, values in found.items()))
    gaps = [rough - exact for exact, rough in zip(*found.values(), strict=True)]
    print(f"bfloat16 − float32: {statistics.mean(gaps):+.3f} ± {statistics.stdev(gaps):.3f} nats (s.d. of the seeds)")
    print(json.dumps({"hardware": hardware(device), "epochs": num_epochs, "neg_elbo": found, "difference": gaps}))


if __name__ == "__main__":
    main()
