"""Measure -log p(x) of an experiment's model by annealed importance sampling.

The bound of `evaluate` is as tight as the encoder is good, so it may order two models wrongly. This
one depends far less on the encoder, and takes minutes.
"""

import argparse

import torch

from pipeline.commands.comparison.choice import read_run
from pipeline.data.datasets import digest, load_split
from pipeline.errors import UserError
from pipeline.evaluation.annealing import CHAINS, STEPS, annealed_bounds
from pipeline.evaluation.bounds import summary
from pipeline.model.vae import load_vae
from pipeline.paths import DATASET
from pipeline.runtime.cores import share_of_cores
from pipeline.runtime.device import prepare_device
from pipeline.runtime.files import home

IMAGES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("exp", metavar="EXP", help="an experiment, a git revision, or workspace")
    text = f"number of test images, evenly spaced (default: {IMAGES}, or all if there are fewer)"
    parser.add_argument("--images", metavar="N", type=int, help=text)


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print the bound beside that of `evaluate`."""
    root = home()
    run = read_run(arguments.exp, root)
    split = load_split(root / DATASET, "test", run.params["binarize"])
    if digest(split.images) != run.protocol.get("images", ""):
        message = "has not the test images that the experiment was evaluated with; run `dvc repro`"
        raise UserError(DATASET, message)
    size = len(split.images)
    n = min(IMAGES, size) if arguments.images is None else arguments.images
    if not 1 < n <= size:
        raise UserError("--images", f"must be 2 ... {size} (got {n})")
    model = load_vae(run.model).requires_grad_(False).to(prepare_device("auto"))
    chosen = torch.arange(n) * size // n  # the first of MNIST's test images are easier
    bound = annealed_bounds(model, split[chosen], share_of_cores(torch.get_num_threads()))
    measured = torch.tensor(run.per_image["nll"].to_numpy()[chosen])
    values = summary({"nll": bound, "before": measured, "gap": measured - bound})
    print(f"likelihood: {n} test images, {CHAINS} chains of {STEPS} steps each")
    print("likelihood: -log p(x) <= {nll:.2f} +/- {nll_se:.2f} nats per image".format(**values))
    about = "the bound of `evaluate` is {before:.2f}, {gap:.3f} +/- {gap_se:.3f} above it"
    print(f"likelihood: {about.format(**values)}")
