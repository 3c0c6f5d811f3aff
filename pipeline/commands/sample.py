"""Draw images from the model of an experiment: E[x|z] for z from the prior, as one PNG file.

With the default seed an unconditional model draws the images of reports/generated.png.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pipeline.commands.comparison.choice import read_run
from pipeline.errors import UserError
from pipeline.figures.grids import save_grid
from pipeline.figures.samples import generate
from pipeline.model.vae import load_vae
from pipeline.runtime.files import home

MAX_IMAGES = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("exp", metavar="EXP", help="an experiment, a git revision, or workspace")
    parser.add_argument("--label", type=int, help="class of the images (of a conditional model)")
    parser.add_argument("-n", type=int, default=128, help="number of images (default: 128)")
    parser.add_argument("-o", metavar="FILE", type=Path, default=Path("samples.png"),
                        help="the PNG file to write (default: samples.png)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of z (default: 0)")


def main(arguments: argparse.Namespace) -> None:
    """Check the arguments, draw, and write the file."""
    path, n = arguments.o, arguments.n
    if not 1 <= n <= MAX_IMAGES:
        raise UserError("-n", f"must be 1 ... {MAX_IMAGES} (got {n})")
    if path.suffix != ".png":
        raise UserError(path, "must end in .png")
    model = load_vae(read_run(arguments.exp, home()).model)
    labels = choose_labels(model.architecture.num_classes, arguments.label, n)
    save_grid(generate(model, labels, arguments.seed), model.architecture.image_shape, path)
    about = "" if arguments.label is None else f" of class {arguments.label}"
    print(f"sample: wrote {n} images{about} to {path}")


def choose_labels(num_classes: int, label: int | None, n: int) -> Tensor:
    """The labels [N]: all the same, or the classes in turn. Raises UserError about --label."""
    if label is None:
        return torch.arange(n) % max(1, num_classes)
    if num_classes == 0:
        message = "the model is not conditional; train one with `dvc exp run -S conditional=true`"
        raise UserError("--label", message)
    if label not in range(num_classes):
        raise UserError("--label", f"must be 0 ... {num_classes - 1} (got {label})")
    return torch.full((n,), label)
