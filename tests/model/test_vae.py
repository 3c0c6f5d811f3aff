import json
import struct
from pathlib import Path

import pytest
import torch
from helpers.models import DEFAULT, small_vae, weights
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.model.network import NETWORKS
from pipeline.model.vae import load_vae, save_vae
from pipeline.runtime.tensor_file import read_header

TINY = {"image_shape": (3, 4), "h_dim": 8, "z_dim": 3, "h_layers": 2, "activation": "tanh"}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_initial_weights_depend_on_the_seed_alone(network):
    first = weights(small_vae(seed=1, network=network))
    torch.manual_seed(5)
    assert torch.equal(weights(small_vae(seed=1, network=network)), first)
    assert not torch.equal(weights(small_vae(seed=2, network=network)), first)


def test_a_new_model_is_in_evaluation_mode():
    """The pictures of an untrained model use neither dropout nor the statistics of a batch."""
    assert not any(module.training for module in small_vae().modules())


def test_a_file_restores_the_model_and_describes_it(tmp_path):
    model, path = small_vae(**TINY), tmp_path / "vae.safetensors"
    save_vae(model, path, {"learning_rate": 1e-05})
    assert torch.equal(weights(load_vae(path)), weights(model))
    assert read_header(path) == {
        "architecture": DEFAULT | TINY | {"image_shape": [3, 4]},
        "provenance": {"learning_rate": 1e-05},
    }


def with_header(header: str) -> bytes:
    save_file(small_vae(**TINY).state_dict(), "with_header", metadata={"header": header})
    return Path("with_header").read_bytes()


def described(**changes: object) -> bytes:
    return with_header(json.dumps({"architecture": DEFAULT | TINY | changes}))


INVALID = {
    "random bytes": lambda: bytes(range(256)) * 8,
    "a wrong length": lambda: struct.pack("<Q", 2**60) + b"{}",
    "no header": lambda: with_header(""),
    "a header of something else": lambda: with_header("{}"),
    "weights of another architecture": lambda: described(z_dim=4),
    "an unknown activation": lambda: described(activation="eval"),
    "an unknown key": lambda: described(width=1),
    "three sides": lambda: described(network="conv", image_shape=(8, 8, 1)),
}


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID)
def test_an_invalid_file_is_refused_in_one_line(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("vae.safetensors").write_bytes(content())
    with pytest.raises(UserError) as error:
        load_vae(Path("vae.safetensors"))
    assert error.value.subject == "vae.safetensors" and "\n" not in str(error.value)
