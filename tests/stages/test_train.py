import csv
import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import set_params
from PIL import Image

from pipeline import train
from pipeline.errors import InputError
from pipeline.model.vae import load_model

OUTPUTS = ("data/model", "reports")


def outputs() -> dict[str, str]:
    paths = [path for folder in OUTPUTS for path in Path(folder).rglob("*") if path.is_file()]
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def test_it_writes_what_it_declares(workplace):
    train.main()
    samples = [
        f"reports/samples/{kind}-epoch-{n:04d}.png" for kind in ("generated", "reconstructed") for n in (0, 2, 3)
    ]
    assert list(outputs()) == ["data/model/vae.safetensors", "reports/history.csv", *samples]

    with Path("reports/history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["val/neg_elbo"]) < float(rows[0]["val/neg_elbo"])
    assert all(repr(float(value)) == value for row in rows for name, value in row.items() if name != "epoch")

    _, header = load_model(Path("data/model/vae.safetensors"))
    assert header["architecture"] == {"x_dim": 784, "h_dim": 32, "z_dim": 4, "h_layers": 1, "activation": "relu"}
    provenance = header["provenance"]
    assert provenance["params"] == {
        "dataset": "mnist", "val_size": 100, "num_epochs": 3, "batch_size": 128, "learning_rate": 0.001, "seed": 0,
        "activation": "relu", "h_dim": 32, "h_layers": 1, "z_dim": 4, "sample_every": 2, "precision": "float32",
    }  # fmt: skip
    assert provenance["device"] == "cpu" and provenance["versions"]["torch"] == version("torch")
    assert {split: said["num_images"] for split, said in provenance["splits"].items()} == {
        "training": 500, "validation": 100,
    }  # fmt: skip


def test_the_same_inputs_give_the_same_bytes(workplace):
    train.main()
    first = outputs()
    train.main()
    assert outputs() == first


def test_no_picture_of_an_earlier_training_is_left(workplace):
    """DVC removes the outputs of the one before; whoever runs the stage by hand may not."""
    train.main()
    set_params(workplace, {"num_epochs": 1})
    train.main()
    assert {path.stem[-4:] for path in Path("reports/samples").iterdir()} == {"0000", "0001"}


def test_every_run_shows_the_same_images(workplace):
    """Whatever is held out: the left halves of the reconstruction pairs are the same pixels."""
    pictures = []
    for val_size in (0, 100):
        set_params(workplace, {"val_size": val_size, "num_epochs": 1})
        train.main()
        pictures.append(np.asarray(Image.open("reports/samples/reconstructed-epoch-0001.png")))
    left = np.arange(pictures[0].shape[1]) % 57 < 29
    assert (pictures[0][:, left] == pictures[1][:, left]).all() and pictures[0][:, left].max() == 255


def test_without_validation_the_history_has_the_same_columns(workplace):
    """Empty ones: DVC's plots draw no curve that lacks a column, and take an empty cell for 0."""
    set_params(workplace, {"val_size": 0, "num_epochs": 1})
    train.main()
    row = next(csv.DictReader(Path("reports/history.csv").read_text().splitlines()))
    assert [name for name, value in row.items() if value == "nan"] == ["val/recon", "val/kl", "val/neg_elbo"]


def test_the_test_split_is_not_touched(workplace):
    for path in Path("data/raw").glob("t10k-*"):
        path.unlink()
    train.main()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_size": 600}, r"^params.yaml: val_size: must be less than the 600 images \(got 600\)$"),
        ({"device": "cuda:99"}, r"^params.yaml: device: cuda:99 is not on this machine.*device: auto"),
        ({"z_dim": 0}, r"^params.yaml: z_dim: must be at least 1 \(got 0\)$"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(workplace, changes, said):
    set_params(workplace, changes)
    with pytest.raises(InputError, match=said):
        train.main()
    assert outputs() == {}


def test_a_loss_that_is_not_finite_stops_the_training_and_leaves_no_model(workplace):
    set_params(workplace, {"learning_rate": 1, "num_epochs": 200, "batch_size": 5})
    with pytest.raises(InputError, match=r"in epoch \d+, step \d+: look at learning_rate .*\(it is 1\.0"):
        train.main()
    assert not Path("data/model/vae.safetensors").exists()
    assert "nan" not in Path("reports/history.csv").read_text(), "no epoch that was none"
    assert not list(Path(".dvc/tmp/checkpoints").glob("*.checkpoint")), "from there it would diverge again"


def test_corrupt_data_is_one_line(workplace):
    path = Path("data/raw/train-images-idx3-ubyte")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="train-images-idx3-ubyte: its header declares 470400 bytes"):
        train.main()
