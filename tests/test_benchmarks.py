"""The benchmarks run, and compare like with like."""

import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import baseline
import measure
import run
import training

from pipeline.vae.fit import PRECISIONS


def test_the_scripts_model_is_the_default_one():
    theirs, ours = baseline.Baseline(), training.new_model(torch.device("cpu"))
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_the_script_learns_and_draws(small_mnist, tmp_path):
    losses = list(islice(baseline.epochs(small_mnist, tmp_path, torch.device("cpu")), 8))
    assert losses[-1] < 0.6 * losses[0] and len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_products_that_a_step_is_measured_by_are_all_of_its_own(precision, monkeypatch):
    """Eleven products: 2 · 128 · n · m operations each, those by the input of the first layer left out."""
    monkeypatch.setattr(training, "STEPS", 1)
    turn = training.products(torch.device("cpu"), precision)
    with FlopCounterMode(display=False) as counter:
        turn()
    sizes = [(784, 400), (400, 40), (20, 400), (400, 784)]
    expected = sum(2 * 128 * n_in * n_out * (2 if i == 0 else 3) for i, (n_in, n_out) in enumerate(sizes))
    assert counter.get_total_flops() == expected


def test_an_epoch_of_ours_is_one_of_fit(small_images):
    turn = training.ours(small_images, "float32")
    first, second = turn(), turn()
    assert (first["epoch"], second["epoch"]) == (1, 2) and second["train/neg_elbo"] < first["train/neg_elbo"]


def test_a_process_finds_as_many_turns_of_steps_as_of_products(small_mnist, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").symlink_to(small_mnist)
    monkeypatch.setattr(training, "ROOT", tmp_path)
    monkeypatch.setattr(training, "STEPS", 2)
    found = training.step_and_products("float32")
    assert list(found) == ["step", "products"] and len(found["step"]) == len(found["products"]) == 4


def test_ratios_are_taken_round_by_round():
    seconds = {"script": [8.0, 6.0, 9.0], "ours": [2.0, 3.0, 3.0]}
    assert measure.ratios(seconds, "script") == {"ours": [4.0, 2.0, 3.0]}
    assert measure.spread([4.0, 2.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 3}


def test_what_is_committed_can_be_drawn(tmp_path):
    found = json.loads((ROOT / "reports" / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
    run.draw(found, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert not {"host", "hostname", "node"} & set(found["training"]["hardware"])
