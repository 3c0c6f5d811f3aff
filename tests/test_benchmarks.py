"""The benchmarks run, and compare what they say they compare."""

import json
import shutil
import sys
from itertools import islice

import pytest
import torch
from conftest import ROOT, committed, set_params

from benchmarks import baseline, evaluation, gpu, measure, run, training
from pipeline.data.datasets import hold_out, load_split
from pipeline.model.vae import save_vae
from pipeline.paths import DATASET, METRICS, MODEL
from pipeline.training import accelerated
from pipeline.training import fit as fit_module

CPU = torch.device("cpu")


def test_the_model_of_the_script_is_the_default_model(small_train):
    script, model = baseline.Baseline(), measure.default_model(small_train)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in script.parameters()) == count


def test_the_script_learns_and_writes_pictures(small_mnist, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.parent.mkdir()
    raw.symlink_to(small_mnist)
    losses = list(islice(baseline.epochs(tmp_path, tmp_path, CPU), 8))
    assert losses[-1] < 0.6 * losses[0]
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_an_arm_that_has_begun_changes_no_other_arm(small_train):
    unpatched = accelerated.checked_gradient, fit_module._as_graphs
    for arm in (training.rows_epochs(small_train), training.eager_epochs(small_train)):
        next(arm)
        assert unpatched == (accelerated.checked_gradient, fit_module._as_graphs)


def test_rows_and_columns_train_alike(small_train):
    columns = list(islice(training.fit_epochs(small_train, "float32"), 3))
    rows = list(islice(training.rows_epochs(small_train), 3))
    for one, other in zip(rows, columns, strict=True):
        assert one["train/neg_elbo"] == pytest.approx(other["train/neg_elbo"], rel=1e-4)


def test_the_autograd_loop_learns(small_train):
    losses = list(islice(training.autograd_epochs(small_train), 6))
    assert losses[-1] < losses[0]


def test_ratios_are_taken_round_by_round():
    seconds = {"script": [8.0, 6.0, 9.0], "ours": [2.0, 3.0, 3.0]}
    assert measure.ratios(seconds, "script") == {"ours": [4.0, 2.0, 3.0]}
    assert measure.spread([4.0, 2.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 3}


def test_both_ways_to_evaluate_estimate_the_same(workplace, small_train, monkeypatch, capsys):
    set_params(workplace, {"eval_samples": 200})
    save_vae(measure.default_model(hold_out(small_train, 0)[0]), MODEL, {})
    settings = {"ROOT": workplace, "IMAGES": 20, "USUAL": 200, "MANY": 300, "MOST": 400}
    for name, value in settings.items():
        monkeypatch.setattr(evaluation, name, value)
    monkeypatch.setattr(sys, "argv", ["evaluation", "2"])
    assert load_split(DATASET, "test").image_shape == (28, 28)
    evaluation.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["hardware"] == measure.hardware(CPU)
    assert len(record["seconds"]["ours"]) == len(record["seconds"]["usual"]) == 2
    assert abs(record["against_usual_200"]["difference"]) < 1
    assert abs(record["against_plain_300_on_1000"]["difference"]) < 1


def test_what_a_gpu_is_measured_for_holds_on_a_cpu(workplace, monkeypatch, capsys):
    (workplace / METRICS).parent.mkdir()
    shutil.copy(ROOT / METRICS, workplace / METRICS)
    monkeypatch.setattr(gpu, "ROOT", workplace)
    monkeypatch.setattr(gpu, "PARAMS", gpu.PARAMS.model_copy(update={"val_size": 100}))
    monkeypatch.setattr(gpu, "DRAWS", (5, 20))
    monkeypatch.setattr(gpu, "ALONE", "print('the weights')")
    found = gpu.train(CPU, 3)["float32"]
    assert found["same_bits_in_two_parts"] and found["same_bits_resumed"]
    times = gpu.evaluate(CPU, 3)
    assert times["20"]["nll"] < times["5"]["nll"]
    assert gpu.share(CPU, 3)["same_bits"]
    gpu.train_alone(2)
    assert len(capsys.readouterr().out.split()) == 2


def test_a_part_that_fails_is_recorded_and_the_others_go_on(monkeypatch, capsys):
    def broken(device, num_epochs):
        raise RuntimeError("no kernel image")

    def sound(device, num_epochs):
        return {"epochs": num_epochs}

    monkeypatch.setattr(gpu, "PARTS", (broken, sound))
    monkeypatch.setattr(gpu, "prepare_device", torch.device)
    monkeypatch.setattr(gpu, "hardware", str)
    monkeypatch.setattr(sys, "argv", ["gpu", "7"])
    gpu.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["broken"] == {"error": "RuntimeError('no kernel image')"}
    assert record["sound"] == {"epochs": 7}


def test_a_picture_is_drawn_of_every_panel(tmp_path):
    seconds = {"script": [6.0, 5.0], "float32": [1.5, 1.4]}
    parts = dict.fromkeys(["train", "evaluate", "log", "dvc"], 2.0)
    records = {
        "training": {"seconds": seconds},
        "sweep": {"seconds": {"1": [10.0], "2": [7.0]}},
        "overhead": {"rounds": [parts, parts]},
        "gpu": {"train": {"epochs": 150, "float32": {"seconds": 9.0}, "tf32": {"seconds": 6.0}}},
    }
    run.draw(records, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_record_names_no_machine():
    records = json.loads(committed("reports/benchmarks/cpu.json"))
    assert not {"host", "hostname", "node"} & {key for record in records.values() for key in record}
    assert (ROOT / "reports/benchmarks/cpu.png").exists()
