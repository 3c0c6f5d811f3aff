"""An ablation of an epoch of training: `python -m benchmarks.training [ROUNDS]` after `make repro`.

Epochs of 60,000 images take turns:
script    the usual script (baseline.py)
autograd  the images stay on the device, the loss of model/objective.py, autograd, fused Adam
rows      `fit` with the written-out gradient in the usual layout
float32   `fit` as in `train`: the layout of columns on a CPU, a CUDA graph on a GPU
bfloat16  `fit` with matrix products in bfloat16
On a GPU also:
eager     `float32` without a graph: every kernel is launched from Python
tf32      `fit` with matrix products in TF32
JSON on the last line.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.baseline import epochs
from benchmarks.measure import (
    PARAMS,
    RAW,
    ROOT,
    default_model,
    hardware,
    ratios,
    rounds_from,
    spread,
    turns,
)
from pipeline.data.datasets import Split, hold_out, load_split
from pipeline.model.network import to_batch
from pipeline.model.objective import elbo_terms
from pipeline.paths import DATASET
from pipeline.runtime.device import prepare_device
from pipeline.training.accelerated.layers import Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.fit import fit
from pipeline.training.gradient import MAX_THREADS
from pipeline.training.optimizer import Optimizer


def autograd_epochs(split: Split) -> Iterator[float]:
    """A training loop without anything of the project but the model and its loss."""
    model = default_model(split)
    adam = torch.optim.Adam(model.parameters(), PARAMS.learning_rate, fused=True)
    device = split.images.device
    while True:
        order = torch.randperm(len(split.images)).to(device)
        for chosen in order.split(PARAMS.batch_size):
            batch = to_batch(split[chosen], device)
            eps = torch.randn(len(chosen), 1, PARAMS.z_dim, device=device)
            loss = elbo_terms(model, batch, eps).neg_elbo.sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        yield loss.item()


def fit_epochs(
    split: Split, precision: str, seed: int = PARAMS.seed, num_epochs: int = 10**6
) -> Iterator[object]:
    """The records of `fit` for the default model without a validation split."""
    optimizer = Optimizer(default_model(split, seed), PARAMS.learning_rate, precision)
    train, val = hold_out(split, 0)
    epochs = range(1, num_epochs + 1)
    return fit(optimizer, train, val, epochs, batch_size=PARAMS.batch_size, seed=seed)


def rows_epochs(split: Split) -> Iterator[object]:
    """`fit_epochs` with the layout of rows, which is not the choice on a CPU."""

    def gradient(optimizer: Optimizer, *_: object) -> PerceptronGradient:
        chosen = PerceptronGradient(optimizer.working, Rows)
        chosen.max_threads = MAX_THREADS  # although its bits depend on their number
        return chosen

    records = fit_epochs(split, "float32")
    with patch("pipeline.training.accelerated.checked_gradient", gradient):
        first = next(records)  # not yielded here: other arms would start with the patch
    yield first
    yield from records


def eager_epochs(split: Split) -> Iterator[object]:
    """`fit_epochs` without a CUDA graph."""
    records = fit_epochs(split, "float32")
    with patch("pipeline.training.fit._as_graphs", lambda steps, *_: steps):
        first = next(records)
    yield first
    yield from records


def main() -> None:
    """Take turns and print the medians."""
    rounds = rounds_from(sys.argv, 5)
    device = prepare_device("auto")
    split = load_split(ROOT / DATASET, "train").to(device)
    with tempfile.TemporaryDirectory() as pictures:
        generators = {
            "script": epochs(RAW, Path(pictures), device),
            "autograd": autograd_epochs(split),
            "float32": fit_epochs(split, "float32"),
            "bfloat16": fit_epochs(split, "bfloat16"),
        }
        if device.type == "cpu":
            generators["rows"] = rows_epochs(split)
        elif device.type == "cuda":
            generators |= {"eager": eager_epochs(split), "tf32": fit_epochs(split, "tf32")}
        arms: dict[str, Callable[[], object]] = {
            name: generator.__next__ for name, generator in generators.items()
        }
        turns(arms, 1)  # warm up
        seconds = turns(arms, rounds)
    faster = {
        f"times_as_fast_as_the_{base}": {
            name: spread(values) for name, values in ratios(seconds, base).items()
        }
        for base in ("script", "autograd")
    }
    print(f"an epoch of {len(split.images)} images on {device}, {rounds} rounds")
    for name, times in seconds.items():
        print(f"  {name:10} {spread(times)['median']:6.2f} s")
    for text, values in faster.items():
        ratios_text = ", ".join(f"{name} {value['median']:.2f}" for name, value in values.items())
        print(f"  {text}: {ratios_text}")
    print(json.dumps({"hardware": hardware(device), "seconds": seconds, **faster}))


if __name__ == "__main__":
    main()
