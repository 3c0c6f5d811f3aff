"""model/objective.py alone decides what is trained; training/accelerated only how fast.

Each case runs the real stage with an edited copy of the package.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, furnish

from pipeline.paths import HISTORY, MODEL
from pipeline.runtime.tensor_file import read_tensors

OBJECTIVE, ACCELERATED = "pipeline/model/objective.py", "pipeline/training/accelerated"
LOSS = ("loss=recon + beta * cost", "loss=recon + 4 * cost")
# Without effect on the outputs of an untrained model.
FLOOR = ("posterior = model.encode(batch)\n", "posterior = bounded(model.encode(batch))\n")
BOUNDED = (
    "def reparameterize(",
    "def bounded(q):\n    return Posterior(q.mu, q.log_var.clamp(min=-2))\n\ndef reparameterize(",
)
FIELD = ("    loss: Tensor  # what", "    penalty: Tensor\n    loss: Tensor  # what")
PENALTY = (
    "return ElboTerms(recon, kl + constant, loss=recon + beta * cost + constant)",
    "penalty = z.abs().sum((-1, -2)); "
    "return ElboTerms(recon, kl, loss=recon + beta * cost + penalty, penalty=penalty)",
)


def train(folder, dataset, *edits, accelerated=True) -> list[str]:
    """Run the stage in `folder` with edits [(before, after)] of objective.py.

    Returns its messages about autograd.
    """
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
    furnish(folder, dataset)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.train"], cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": str(code)}, capture_output=True, text=True,
    )  # fmt: skip
    return [line for line in done.stderr.splitlines() if "autograd" in line]


def distance(one: Path, other: Path) -> float:
    """The largest difference between two weights."""
    first, second = read_tensors(one / MODEL), read_tensors(other / MODEL)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_without_the_folder_autograd_trains_the_same_model(
    finished_workspace, tmp_path, small_dataset
):
    assert len(train(tmp_path, small_dataset, accelerated=False)) == 1
    assert distance(tmp_path, finished_workspace) < 1e-4
    plain, accelerated = (pd.read_csv(at / HISTORY) for at in (tmp_path, finished_workspace))
    pd.testing.assert_frame_equal(plain, accelerated, rtol=1e-5)


def test_an_edited_loss_is_trained_with_one_message(finished_workspace, tmp_path, small_dataset):
    assert len(train(tmp_path, small_dataset, LOSS)) == 1
    assert distance(tmp_path, finished_workspace) > 1e-3
    history = pd.read_csv(tmp_path / HISTORY)
    neg_elbo = history["val/recon"] + history["val/kl"]
    assert history["val/neg_elbo"].to_list() == pytest.approx(neg_elbo.to_list())


def test_an_edit_that_takes_effect_later_is_noticed(tmp_path, small_dataset):
    assert len(train(tmp_path, small_dataset, FLOOR, BOUNDED)) == 1


def test_a_new_term_is_trained_and_gets_its_columns(finished_workspace, tmp_path, small_dataset):
    assert len(train(tmp_path, small_dataset, FIELD, PENALTY)) == 1
    assert distance(tmp_path, finished_workspace) > 1e-3
    history = pd.read_csv(tmp_path / HISTORY)
    assert [*history] == [
        "epoch", "train/recon", "train/kl", "train/penalty", "train/neg_elbo",
        "val/recon", "val/kl", "val/penalty", "val/neg_elbo",
    ]  # fmt: skip
    assert (history["train/penalty"] > 0).all()
