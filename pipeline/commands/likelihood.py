"""Measure -log p(x) of an experiment's model by annealed importance sampling.

The bound of `evaluate` is as tight as the encoder is good, so it may order two models wrongly. This
one depends far less on the encoder, and takes minutes.
"""

import argparse

import torch

from pipeline.commands.comparison.choice import read_run
from pipeline.data.datasets import Split, digest, load_split
from pipeline.errors import UserError
from pipeline.evaluation.annealing import CHAINS, STEPS, evidence
from pipeline.evaluation.bounds import summary
from pipeline.model.vae import load_vae
from pipeline.paths import DATASET
from pipeline.runtime.cores import share_of_cores
from pipeline.runtime.files import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("exp", metavar="EXP", help="an experiment, a git revision, or workspace")
    text = "the first N test images (default: 1000)"
    parser.add_argument("--images", metavar="N", type=int, default=1000, help=text)


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print the bound beside that of `evaluate`."""
    root, n = home(), arguments.images
    run = read_run(arguments.exp, root)
    split = load_split(root / DATASET, "test", run.params["binarize"])
    if digest(split.images) != run.protocol.get("images", ""):
        message = "has not the test images that the experiment was evaluated with; run `dvc repro`"
        raise UserError(DATASET, message)
    if not 1 < n <= len(split.images):
        raise UserError("--images", f"must be 2 ... {len(split.images)} (got {n})")
    model = load_vae(run.model).requires_grad_(False)
    some = Split(split.images[:n], split.labels[:n], split.image_shape)
    bound = evidence(model, some, share_of_cores(torch.get_num_threads()))
    measured = torch.tensor(run.per_image["nll"].to_numpy()[:n])
    values = summary({"nll": bound, "before": measured, "gap": measured - bound})
    print(f"likelihood: {n} test images, {CHAINS} chains of {STEPS} steps each")
    print("likelihood: -log p(x) <= {nll:.2f} +/- {nll_se:.2f} nats per image".format(**values))
    about = "the bound of `evaluate` is {before:.2f}, {gap:.3f} +/- {gap_se:.3f} above it"
    print(f"likelihood: {about.format(**values)}")
