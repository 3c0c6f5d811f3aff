import json
from pathlib import Path

import pytest

from pipeline import evaluate, train
from pipeline.errors import InputError
from pipeline.vae import metrics
from pipeline.vae.mnist import load_images
from pipeline.vae.model import load_model


def test_it_measures_the_model_on_the_test_split_alone(workplace):
    train.main()
    for path in Path("data/raw").glob("train-*"):
        path.unlink()
    evaluate.main()
    written = json.loads(Path("reports/metrics.json").read_text())
    model, _ = load_model(Path("data/model/vae.safetensors"))
    assert written == {"test": metrics.evaluate(model, load_images(Path("data/raw"), "test"))}
    assert written["test"]["num_images"] == 200
    assert Path("reports/generated.png").exists() and Path("reports/reconstructed.png").exists()


def test_without_a_model_it_says_which_command_makes_one(workplace):
    with pytest.raises(InputError, match=r"^data/model/vae.safetensors: cannot be read; `dvc repro train` makes it$"):
        evaluate.main()
