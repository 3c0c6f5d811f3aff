"""model/objective.py alone decides what is trained; training/accelerated only how fast.

Each case runs the real stage with an edited copy of the package.
"""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, furnish

from pipeline.paths import HISTORY, MODEL
from pipeline.runtime.tensor_file import read_tensors

OBJECTIVE, ACCELERATED = "pipeline/model/objective.py", "pipeline/training/accelerated"
LOSS = ("self.recon + self.kl", "self.recon + 4 * self.kl")
FIELD = ("    kl: Tensor\n", "    kl: Tensor\n    penalty: Tensor\n")
PENALTY = (
    "kl=gaussian_kl(*posterior)",
    "kl=gaussian_kl(*posterior), penalty=outputs.abs().sum(-1)",
)
PENALIZED = ("self.recon + self.kl", "self.recon + self.kl + self.penalty")


class Training:
    """The stage with edits [(before, after)] of objective.py, with or without acceleration."""

    def __init__(self, folder, dataset, *edits, accelerated=True):
        code = folder / "code"
        shutil.copytree(ROOT / "pipeline", code / "pipeline")
        shutil.copy(ROOT / "dvc.yaml", code)
        text = (code / OBJECTIVE).read_text(encoding="utf-8")
        for before, after in edits:
            assert text.count(before) == 1
            text = text.replace(before, after)
        (code / OBJECTIVE).write_text(text, encoding="utf-8")
        if not accelerated:
            shutil.rmtree(code / ACCELERATED)
        furnish(folder / "work", dataset)
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.stages.train"], cwd=folder / "work", check=True,
            env={**os.environ, "PYTHONPATH": str(code)}, capture_output=True, text=True,
        )  # fmt: skip
        self.autograd = [line for line in done.stderr.splitlines() if "autograd" in line]
        self.tensors = read_tensors(folder / "work" / MODEL)
        self.history = pd.read_csv(folder / "work" / HISTORY)


def distance(one: Training, other: Training) -> float:
    """The largest difference between two weights."""
    return max((one.tensors[name] - other.tensors[name]).abs().max().item() for name in one.tensors)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory, small_dataset):
    return Training(tmp_path_factory.mktemp("unchanged"), small_dataset)


def test_the_default_model_is_accelerated(unchanged):
    assert unchanged.autograd == []


def test_without_the_folder_autograd_trains_the_same_model(unchanged, tmp_path, small_dataset):
    plain = Training(tmp_path, small_dataset, accelerated=False)
    assert len(plain.autograd) == 1
    assert distance(plain, unchanged) < 1e-4
    assert plain.history["val/neg_elbo"].iloc[-1] == pytest.approx(
        unchanged.history["val/neg_elbo"].iloc[-1], rel=1e-5
    )


def test_an_edited_loss_is_trained_with_one_message(unchanged, tmp_path, small_dataset):
    edited = Training(tmp_path, small_dataset, LOSS)
    assert len(edited.autograd) == 1
    assert distance(edited, unchanged) > 1e-3
    assert edited.history["train/neg_elbo"].iloc[0] > unchanged.history["train/neg_elbo"].iloc[0]


def test_a_new_term_is_trained_and_gets_its_columns(unchanged, tmp_path, small_dataset):
    edited = Training(tmp_path, small_dataset, FIELD, PENALTY, PENALIZED)
    assert len(edited.autograd) == 1
    assert distance(edited, unchanged) > 1e-3
    assert [*edited.history] == [
        "epoch", "train/recon", "train/kl", "train/penalty", "train/neg_elbo",
        "val/recon", "val/kl", "val/penalty", "val/neg_elbo",
    ]  # fmt: skip
    assert (edited.history["train/penalty"] > 0).all()
