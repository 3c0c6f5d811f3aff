"""The benchmarks run, and compare like with like."""

import json
import os
import shutil
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import set_params
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import baseline
import evaluation
import measure
import overhead
import run
import training

from pipeline.training.fit import PRECISIONS
from pipeline.model.vae import save_model

CPU = torch.device("cpu")
COMMITTED = json.loads((ROOT / "reports" / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))


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


def test_the_hardware_is_told_where_the_system_does_not_say_which_cores_are_ours(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert measure.hardware(CPU)["cores"] == os.cpu_count() and measure.hardware(CPU)["gpu"] is None


def test_an_experiment_is_told_to_be_on_the_device_of_params_yaml(tmp_path, monkeypatch):
    set_params(tmp_path, {"device": "cpu"}, source=ROOT / "params.yaml")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(overhead, "ROOT", tmp_path)
    assert overhead.computed_on() == measure.hardware(CPU)


@pytest.fixture
def evaluated(tmp_path, small_mnist, monkeypatch) -> None:
    """A small test split, a model that nobody trained, and few draws."""
    (tmp_path / "data" / "model").mkdir(parents=True)
    shutil.copytree(small_mnist, tmp_path / "data" / "raw")
    set_params(tmp_path, {"eval_samples": 20}, source=ROOT / "params.yaml")
    save_model(training.new_model(CPU), tmp_path / "data" / "model" / "vae.safetensors", {})
    for name, value in {"ROOT": tmp_path, "IMAGES": 20, "USUAL": 30, "MANY": 40, "MOST": 60}.items():
        monkeypatch.setattr(evaluation, name, value)
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "2"])


@pytest.mark.usefixtures("evaluated")
def test_the_evaluation_tells_what_it_was_measured_on(capsys):
    evaluation.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["hardware"] == measure.hardware(evaluation.prepare_device("auto", said_in="this machine"))
    assert len(found["seconds"]["ours"]) == len(found["seconds"]["usual_30"]) == 2
    assert abs(found["against_plain_40_on_1000"]["difference"]) < 5


@pytest.mark.usefixtures("evaluated")
def test_the_evaluation_takes_model_and_images_to_the_device(monkeypatch):
    """`meta` is one that is everywhere and is not the CPU, and computes nothing."""
    taken = []

    def stop(model, x, *args, **kwargs):
        taken.extend([next(model.parameters()).device.type, x.device.type])
        raise InterruptedError

    monkeypatch.setattr(evaluation, "prepare_device", lambda *_, **__: torch.device("meta"))
    monkeypatch.setattr(evaluation, "log_weights", stop)
    with pytest.raises(InterruptedError):
        evaluation.main()
    assert taken == ["meta", "meta"]


def test_what_is_committed_can_be_drawn(tmp_path):
    run.draw(COMMITTED, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert not {"host", "hostname", "node"} & set(COMMITTED["training"]["hardware"])


def record(name: str, gpu: str | None = None) -> dict:
    """What a benchmark's last line says: the committed figures, from this machine or one that has a GPU."""
    return COMMITTED[name] | {"hardware": measure.hardware(CPU) | {"gpu": gpu}}


@pytest.mark.parametrize("name", run.SCRIPTS)
def test_a_benchmark_is_drawn_from_its_own_record(name, tmp_path):
    run.draw({name: record(name)}, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").exists() == (name in run.PANELS)


@pytest.mark.parametrize("words", ["1 precision stage", "3 evaluation", "sweep", "overhead sweep"])
def test_benchmarks_run_alone_where_there_is_no_file_yet(words, tmp_path, monkeypatch, capsys):
    reports = tmp_path / "reports" / "benchmarks"
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "REPORTS", reports)
    monkeypatch.setattr(run, "measured", lambda name, rounds: record(name))
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    run.main()
    names = [word for word in words.split() if not word.isdigit()]
    assert list(json.loads((reports / "cpu.json").read_text(encoding="utf-8"))) == names
    assert ("cpu.png" in capsys.readouterr().out) == (reports / "cpu.png").exists() == ("sweep" in names)


def test_a_record_goes_to_the_file_of_the_device_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "REPORTS", tmp_path)
    gpu, cpu = run.keep("training", record("training", "NVIDIA A100")), run.keep("sweep", record("sweep"))
    assert (gpu.name, cpu.name) == ("nvidia-a100.json", "cpu.json")
    newer = record("sweep") | {"epochs": 9}
    assert run.keep("stage", record("stage")) == run.keep("sweep", newer) == cpu
    assert json.loads(cpu.read_text(encoding="utf-8")) == {"sweep": newer, "stage": record("stage")}
    assert list(json.loads(gpu.read_text(encoding="utf-8"))) == ["training"]
