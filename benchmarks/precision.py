"""What bfloat16 costs: `python -m benchmarks.precision [EPOCHS]` after `make repro`.

-ELBO on the test split after ten epochs in float32 and in bfloat16, for three seeds, with the
default model and all 60,000 training images. JSON on the last line.
"""

import json
import statistics
import sys

from benchmarks.measure import PARAMS, ROOT, default_model, hardware, rounds_from
from pipeline.data.datasets import Split, hold_out, load_split
from pipeline.evaluation.bounds import elbo
from pipeline.paths import DATASET
from pipeline.runtime.device import prepare_device
from pipeline.training.fit import fit
from pipeline.training.optimizer import Optimizer

SEEDS = (0, 1, 2)
PRECISIONS = ("float32", "bfloat16")


def neg_elbo(train: Split, test: Split, precision: str, seed: int, num_epochs: int) -> float:
    """In nats per test image."""
    model = default_model(train, seed)
    optimizer = Optimizer(model, PARAMS.learning_rate, precision)
    epochs = range(1, num_epochs + 1)
    for _ in fit(
        optimizer, *hold_out(train, 0), epochs, batch_size=PARAMS.batch_size, seed=seed
    ):  # fmt: skip
        pass
    terms, _, _ = elbo(model, test)
    return float(terms.neg_elbo.double().mean())


def main() -> None:
    """Train, and print one line per seed."""
    num_epochs = rounds_from(sys.argv, 10)
    device = prepare_device("auto")
    train = load_split(ROOT / DATASET, "train").to(device)
    test = load_split(ROOT / DATASET, "test")
    values: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for seed in SEEDS:
        for precision, value in values.items():
            value.append(neg_elbo(train, test, precision, seed, num_epochs))
        line = ", ".join(f"{value[-1]:.2f} in {name}" for name, value in values.items())
        print(f"seed {seed}: {line}")
    pairs = zip(values["float32"], values["bfloat16"], strict=True)
    differences = [rounded - exact for exact, rounded in pairs]
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    print(f"bfloat16 - float32: {mean:+.3f} +/- {deviation:.3f} nats (standard deviation)")
    record = {"hardware": hardware(device), "epochs": num_epochs, "neg_elbo": values}
    print(json.dumps(record | {"difference": differences}))


if __name__ == "__main__":
    main()
