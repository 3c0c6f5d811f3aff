import shutil

import pytest
from conftest import ROOT
from helpers.repo import litter

from pipeline.params import load_params
from pipeline.paths import DATASET
from pipeline.runtime.files import sha256_file
from pipeline.runtime.fingerprint import fingerprint, provenance

WRITERS = {"numpy", "pillow", "safetensors", "torch"}  # what computes and writes


@pytest.fixture
def params(workplace):
    return load_params().model_dump()


@pytest.fixture
def code(tmp_path):
    """A copy of the code."""
    root = tmp_path / "code"
    shutil.copytree(ROOT / "pipeline", root / "pipeline")
    shutil.copy(ROOT / "dvc.yaml", root)
    return root


def test_provenance_has_what_decides_the_weights_and_no_code(params):
    origin = provenance(params, "cpu")
    assert origin["params"] == {
        "activation": "relu", "batch_size": 128, "h_dim": 32, "h_layers": 1, "learning_rate": 0.001,
        "likelihood": "bernoulli", "network": "mlp", "num_epochs": 3, "precision": "float32",
        "seed": 0, "val_size": 100, "z_dim": 4,
    }  # fmt: skip
    sha256 = sha256_file(DATASET)
    assert origin["data"] == {"dataset": "mnist", "sha256": sha256}
    assert origin["device"] == "cpu" and origin["versions"].keys() == WRITERS
    assert origin.keys() == {"params", "device", "data", "versions"}


def test_the_fingerprint_depends_on_provenance_and_every_declared_parameter(params):
    def of(device="cpu", **changes):
        return fingerprint(provenance(params | changes, device), params | changes)

    assert of() == of(eval_samples=7), "not a parameter of train"
    others = [of("cuda 13 (A)"), of(seed=1), of(sample_every=7), of(device="auto")]
    assert len({of(), *others}) == 5


def test_the_fingerprint_depends_on_the_code_of_train_alone(params, code):
    origin = provenance(params, "cpu")
    first = fingerprint(origin, params, code)
    assert first == fingerprint(origin, params)
    (code / "pipeline/evaluation/bounds.py").write_text("# other\n")
    (code / "pipeline/model/objective copy.py").write_text("not importable\n")
    litter(code / "pipeline/model")
    assert fingerprint(origin, params, code) == first
    with (code / "pipeline/model/objective.py").open("a") as file:
        file.write("# a comment\n")
    assert fingerprint(origin, params, code) != first
