"""`python -m pipeline likelihood` over the results of real stages."""

import argparse
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import error_about, set_params
from helpers.fake_experiments import MODEL, PER_IMAGE, FakeExperiments

from pipeline.commands import likelihood
from pipeline.data.datasets import load_split, save_dataset
from pipeline.evaluation.annealing import annealed_bounds
from pipeline.model.vae import load_vae
from pipeline.paths import DATASET
from pipeline.stages import evaluate


def commit_results(finished, tmp_path) -> None:
    """Make the files of the stages those of HEAD."""
    for name in (".git", ".gitignore"):
        (finished / name).rename(tmp_path / f"old{name}")
    (finished / ".dvc").rename(tmp_path / "old.dvc")
    repo = FakeExperiments(finished)
    outs = {name: (finished / name).read_bytes() for name in (MODEL, PER_IMAGE)}
    params = yaml.safe_load((finished / "params.yaml").read_text())
    paths = (finished / "reports").rglob("*.*")
    files = {path.relative_to(finished).as_posix(): path.read_bytes() for path in paths}
    repo.commit(files | {"dvc.lock": yaml.safe_dump(repo.lock(params, outs, "x")).encode()})


def measure(images: int | None) -> None:
    likelihood.main(argparse.Namespace(exp="HEAD", images=images))


@pytest.mark.parametrize("binarize", ["none", "fixed"])
def test_both_bounds_are_of_the_same_evenly_spaced_images(
    finished, tmp_path_factory, capsys, binarize
):
    if binarize != "none":
        set_params(finished, {"binarize": binarize})
        evaluate.main()
    measured = pd.read_parquet(PER_IMAGE)["nll"].to_numpy()[::40].astype("float64")
    commit_results(finished, tmp_path_factory.mktemp("old"))
    capsys.readouterr()
    measure(5)
    output = capsys.readouterr().out
    split = load_split(DATASET, "test", binarize)[torch.arange(0, 200, 40)]
    bound = annealed_bounds(load_vae(finished / MODEL), split, 1).double().numpy()
    gap = measured - bound
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", output)]
    expected = [bound.mean(), bound.std(ddof=1) / np.sqrt(5), measured.mean(), gap.mean()]
    assert numbers == pytest.approx([*expected, gap.std(ddof=1) / np.sqrt(5)], abs=0.006)
    for number in (0, 1, 201):
        with error_about("--images"):
            measure(number)


def test_other_images_than_those_of_the_evaluation_are_refused(finished, tmp_path_factory):
    commit_results(finished, tmp_path_factory.mktemp("old"))
    splits = {name: load_split(DATASET, name) for name in ("train", "test")}
    splits["test"].images[0] += 1
    pairs = {name: (s.images.view(-1, 28, 28), s.labels) for name, s in splits.items()}
    save_dataset(DATASET, "mnist", pairs)
    with error_about(DATASET):
        measure(5)
