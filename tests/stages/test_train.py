import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import EARLY, ROOT, error_about, set_params
from helpers.models import DEFAULT, small_vae, weights
from PIL import Image

from pipeline import paths
from pipeline.data.datasets import digest, hold_out, load_split, save_dataset
from pipeline.errors import UserError
from pipeline.model.objective import NEG_ELBO, Objective
from pipeline.model.vae import load_vae
from pipeline.runtime.files import checkpoint_path, sha256_file
from pipeline.runtime.pending_run import pending_runs
from pipeline.runtime.tensor_file import read_header
from pipeline.stages import train
from pipeline.training import checkpoint
from pipeline.training.best_epoch import BestEpoch
from pipeline.training.fit import columns, fit
from pipeline.training.optimizer import Optimizer

STAGE = (sys.executable, "-m", "pipeline.stages.train")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@pytest.fixture(autouse=True)
def no_follower(monkeypatch):
    """Of the trainings in this process; those in processes of their own have one."""
    monkeypatch.setattr("pipeline.runtime.pending_run.PATIENCE", 0.01)


def outputs() -> dict[str, str]:
    found = [paths.MODEL, *sorted(Path("reports").rglob("*.*"))]
    return {path.as_posix(): sha256_file(path) for path in found}


def checkpoints() -> list[Path]:
    return list(checkpoint_path("").parent.glob("*.checkpoint"))


def test_it_writes_what_it_declares(workplace, capsys):
    train.main()
    assert "autograd" not in capsys.readouterr().err, "the default model is accelerated"
    kinds, epochs = ("generated", "reconstructed"), ("0000", "0002", "0003")
    samples = [f"reports/samples/{kind}-epoch-{epoch}.png" for kind in kinds for epoch in epochs]
    assert list(outputs()) == ["data/vae.safetensors", "reports/history.csv", *samples]
    history = pd.read_csv(paths.HISTORY)
    assert [*history] == columns(NEG_ELBO) and [*history["epoch"]] == [1, 2, 3]
    assert history["val/neg_elbo"].iloc[2] < history["val/neg_elbo"].iloc[0]
    text = paths.HISTORY.read_text().split()[1].split(",")[1:]
    assert [repr(float(value)) for value in text] == text, "floats read back equal"
    assert not checkpoints()


def test_the_model_file_and_the_pending_run_state_where_the_model_comes_from(workplace):
    train.main()
    header = read_header(paths.MODEL)
    assert header["architecture"] == DEFAULT | {"image_shape": [28, 28]}
    origin = header["provenance"]
    assert origin["device"] == "cpu" and origin["versions"]["torch"] == version("torch")
    sizes = {name: split["num_images"] for name, split in origin["splits"].items()}
    assert sizes == {"training": 500, "validation": 100}
    (pending,) = pending_runs()
    assert pending.model_sha256 == sha256_file(paths.MODEL) and pending.provenance == origin


def test_a_conditional_model_has_the_classes_of_the_dataset_and_shows_a_row_of_each(workplace):
    set_params(workplace, {"conditional": "true", "num_epochs": 1})
    train.main()
    assert read_header(paths.MODEL)["architecture"]["num_classes"] == 10
    picture = Image.open(paths.SAMPLES / "generated-epoch-0001.png")
    assert picture.size == (16 * 29 + 1, 10 * 29 + 1)


def test_a_label_may_have_no_image(workplace, small_train):
    images, labels = small_train.images.view(-1, 28, 28), 2 * (small_train.labels % 2)
    save_dataset(paths.DATASET, "own", {"train": (images, labels)})
    set_params(workplace, {"conditional": "true", "num_epochs": 1})
    train.main()
    assert read_header(paths.MODEL)["architecture"]["num_classes"] == 3


def test_a_conditional_model_needs_labels(workplace, small_train):
    save_dataset(paths.DATASET, "own", {"train": (small_train.images.view(-1, 28, 28), None)})
    set_params(workplace, {"conditional": "true"})
    with error_about("params.yaml: conditional"):
        train.main()


def test_every_parameter_of_a_training_has_its_effect(workplace):
    """The same records and weights as of `fit` with these values, written out."""
    changes = {
        "binarize": "dynamic", "z_dim": 3, "activation": "tanh", "beta": 4, "warmup_epochs": 3,
        "free_bits": 0.1, "num_samples": 2, "num_epochs": 12, "batch_size": 50, "seed": 5,
        "learning_rate": 0.1, "lr_schedule": "cosine", "weight_decay": 0.3, "patience": 1,
        "precision": "bfloat16",
    }  # fmt: skip
    set_params(workplace, changes)
    train.main()
    training, _ = hold_out(load_split(paths.DATASET, "train"), 100)
    _, validation = hold_out(load_split(paths.DATASET, "train", "fixed"), 100)
    model = small_vae(5, z_dim=3, activation="tanh")
    schedule = {"lr_schedule": "cosine", "num_epochs": 12, "weight_decay": 0.3}
    optimizer = Optimizer(model, 0.1, "bfloat16", **schedule)
    objective = Objective(num_samples=2, beta=4.0, warmup_epochs=3, free_bits=0.1)
    best = BestEpoch(model, patience=1, warmup_epochs=3)
    options = {"batch_size": 50, "seed": 5, "objective": objective, "binarize": True, "best": best}
    records = list(fit(optimizer, training, validation, range(1, 13), **options))
    assert pd.read_csv(paths.HISTORY).to_dict("records") == records
    assert torch.equal(weights(load_vae(paths.MODEL)), weights(model))


def test_pictures_of_another_training_are_deleted(workplace):
    paths.SAMPLES.mkdir(parents=True)
    (paths.SAMPLES / "generated-epoch-0100.png").touch()
    set_params(workplace, {"num_epochs": 1})
    train.main()
    assert {path.stem[-4:] for path in paths.SAMPLES.iterdir()} == {"0000", "0001"}


def test_every_run_shows_the_same_images(workplace):
    """The left halves of the reconstruction pairs, whatever is held out."""
    pictures = []
    for val_size in (0, 100):
        set_params(workplace, {"val_size": val_size, "num_epochs": 1})
        train.main()
        pictures.append(np.asarray(Image.open(paths.SAMPLES / "reconstructed-epoch-0001.png")))
    left = np.arange(pictures[0].shape[1]) % 57 < 29
    assert (pictures[0][:, left] == pictures[1][:, left]).all() and pictures[0].max() == 255


@pytest.mark.parametrize("binarize", ["fixed", "dynamic"])
def test_binary_images_are_trained_on_and_shown(workplace, binarize):
    """The digests name the gray images if pixels are drawn again, else those that are used."""
    set_params(workplace, {"binarize": binarize, "num_epochs": 1})
    train.main()
    origin = read_header(paths.MODEL)["provenance"]
    gray, drawn = (load_split(paths.DATASET, "train", how).images for how in ("none", "fixed"))
    trained = gray if binarize == "dynamic" else drawn
    digests = {name: split["sha256"] for name, split in origin["splits"].items()}
    assert digests == {"training": digest(trained[:500]), "validation": digest(drawn[500:])}
    assert origin["params"]["binarize"] == binarize
    shown = np.asarray(Image.open(paths.SAMPLES / "reconstructed-epoch-0001.png"))[1:29, 1:29]
    assert set(shown.flatten()) == {0, 255}


def test_without_validation_the_history_has_nan_in_the_same_columns(workplace):
    """DVC's plots draw no curve without its column, and read an empty cell as 0."""
    set_params(workplace, {"val_size": 0, "num_epochs": 1})
    train.main()
    names, line = (text.split(",") for text in paths.HISTORY.read_text().split())
    empty = [name for name, value in zip(names, line, strict=True) if value == "nan"]
    assert empty == [name for name in columns(NEG_ELBO) if name.startswith("val/")]


def test_a_training_that_stops_early_writes_its_best_model_and_the_pictures_of_it(
    workplace, capsys
):
    set_params(workplace, EARLY)
    train.main()
    history, output = pd.read_csv(paths.HISTORY), capsys.readouterr()
    best, last = 1 + history["val/neg_elbo"].argmin(), len(history)
    assert last == best + EARLY["patience"] < EARLY["num_epochs"]
    assert f"stopped after epoch {last}: " in output.err
    assert f"wrote the weights of epoch {best} as " in output.out
    assert [*history] == columns(NEG_ELBO, "cosine") and history["lr"].is_monotonic_decreasing
    _, shown = hold_out(load_split(paths.DATASET, "train"), train.NUM_PAIRS)
    train.save_samples(load_vae(paths.MODEL), shown, epoch=0)
    for kind in ("generated", "reconstructed"):
        of_model, of_last = (paths.SAMPLES / f"{kind}-epoch-{epoch:04d}.png" for epoch in (0, last))
        assert of_model.read_bytes() == of_last.read_bytes()


@pytest.mark.parametrize(("key", "value"), [("val_size", 600), ("device", "cuda:99"), ("z_dim", 0)])
def test_an_invalid_value_is_refused_before_anything_is_written(workplace, key, value):
    set_params(workplace, {key: value})
    with pytest.raises(UserError) as error:
        train.main()
    assert error.value.subject == f"params.yaml: {key}"
    assert not paths.MODEL.exists() and not Path("reports").exists()


def test_divergence_is_one_message_and_leaves_no_model(workplace):
    set_params(workplace, {"learning_rate": 1, "num_epochs": 200, "batch_size": 5})
    with pytest.raises(UserError) as error:
        train.main()
    assert error.value.subject == "params.yaml: learning_rate" and "batch_size" in str(error.value)
    assert not paths.MODEL.exists() and not checkpoints()
    history = paths.HISTORY.read_text() if paths.HISTORY.exists() else ""
    assert "nan" not in history, "no line for the epoch that failed"


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA")
def test_too_little_memory_is_one_line_that_names_parameters(workplace):
    set_params(workplace, {"h_dim": 8192, "h_layers": 8})
    process = start("bash", "-c", f"ulimit -d 1000000; exec {shlex.join(STAGE)}")
    output = process.communicate()[0]
    assert process.returncode == 3 and "Traceback" not in output
    assert "out of memory: lower batch_size, " in output.splitlines()[-1]


@pytest.mark.parametrize("val_size", [0, 100])
def test_what_only_the_last_step_broke_is_found(workplace, val_size):
    """The loss of one step of all images, and of validation, is finite; the variances are not."""
    changes = {"learning_rate": 1, "num_epochs": 1, "batch_size": 60_000, "val_size": val_size}
    set_params(workplace, changes)
    with error_about("params.yaml: learning_rate"):
        train.main()
    assert not paths.MODEL.exists() and not paths.HISTORY.exists()


class Fault(BaseException):
    """The process ends here, as far as files can show it."""


def run_with_fault(monkeypatch, owner, name, calls):
    """Run the stage; the call of `name` after `calls` of them ends it."""
    function, remaining = getattr(owner, name), iter(range(calls))

    def faulty(*arguments, **keywords):
        if next(remaining, None) is None:
            raise Fault
        return function(*arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(Fault):
        patch.setattr(owner, name, faulty)
        train.main()


FAULTS = {
    "before the first checkpoint": (train, "append", 0, False),
    "between pictures and the line of their epoch": (train, "append", 3, True),
    "while a checkpoint is written": (checkpoint, "_pack", 2, True),
    # After the history, four pictures, the record and a checkpoint.
    "before a checkpoint replaces the last one": (Path, "replace", 7, True),
    "before the model is written": (train, "save_vae", 0, True),
    "after the model is written": (train, "sha256_file", 0, True),
}


@pytest.mark.parametrize("changes", [{"num_epochs": 6}, EARLY], ids=["default", "stops early"])
@pytest.mark.parametrize(("owner", "name", "calls", "resumed"), FAULTS.values(), ids=FAULTS)
def test_an_interrupted_training_ends_in_the_same_bytes(
    workplace, monkeypatch, capsys, owner, name, calls, resumed, changes
):
    monkeypatch.setattr(checkpoint, "MAX_SHARE", 1e9)
    set_params(workplace, changes)
    train.main()
    reference = outputs()
    paths.MODEL.unlink()
    run_with_fault(monkeypatch, owner, name, calls)
    shutil.rmtree("reports")  # as DVC does before it runs a stage
    capsys.readouterr()
    train.main()
    assert ("resuming" in capsys.readouterr().err) is resumed
    assert outputs() == reference and not checkpoints()


def test_a_killed_process_resumes_and_ends_in_the_same_bytes(workplace):
    set_params(workplace, {"num_epochs": 40, "sample_every": 7, "h_dim": 512})
    train.main()
    reference = outputs()
    shutil.rmtree("reports")
    process = start(*STAGE)
    while not paths.HISTORY.exists() or paths.HISTORY.read_text().count("\n") <= 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    shutil.rmtree("reports")
    output, _ = start(*STAGE).communicate()
    assert "resuming after epoch" in output
    assert outputs() == reference and not checkpoints()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("delay", [0.05, 0.3, 4.0])
def test_a_stage_dies_with_the_dvc_that_started_it(workplace, delay):
    set_params(workplace, {"num_epochs": 100_000})
    parent = start("sh", "-c", f"{shlex.join(STAGE)} & echo started; wait", DVC_STAGE="train")
    parent.stdout.readline()
    time.sleep(delay)
    parent.kill()
    parent.communicate(timeout=60)  # until the stage, which writes to the same pipe, has ended


@pytest.fixture
def subreaper():
    """Orphans become children of this process, as of `systemd --user`, and not of process 1."""
    set_option = ctypes.CDLL(None).prctl
    set_option(PR_SET_CHILD_SUBREAPER, 1)
    yield
    set_option(PR_SET_CHILD_SUBREAPER, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_stage_that_still_imports_pytorch_dies_with_the_dvc_that_started_it(workplace, subreaper):
    """No process 1 as its parent shows a stage that it is an orphan."""
    parent = start("sh", "-c", f"{shlex.join(STAGE)} & echo $!; wait", DVC_STAGE="train")
    stage = int(parent.stdout.readline())
    maps = Path(f"/proc/{stage}/maps")
    while "libtorch" not in maps.read_text():
        time.sleep(0.001)
    parent.kill()
    parent.communicate(timeout=60)  # until the stage has ended
    _, status = os.waitpid(stage, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def start(*command: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
