import json
import math
import struct
from pathlib import Path

import pytest
import torch
from helpers.models import DEFAULT, Convolutional, small_vae, weights
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UserError
from pipeline.model.network import ACTIVATIONS, NETWORKS
from pipeline.model.vae import load_vae, save_vae
from pipeline.runtime.tensor_file import read_header

TINY = {"image_shape": (3, 4), "h_dim": 8, "z_dim": 3, "h_layers": 2, "activation": "tanh"}


def test_default_architecture_has_the_parameters_of_the_original_script():
    model = small_vae(h_dim=400, z_dim=20)
    script = [(784, 400), (400, 20), (400, 20), (20, 400), (400, 784)]
    assert len(weights(model)) == sum(n * m + m for n, m in script)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("h_layers", [1, 3])
def test_hidden_layers_and_activation_follow_the_architecture(name, h_layers):
    network = small_vae(activation=name, h_layers=h_layers).network
    for layers in (network.encoder, network.decoder):
        kinds = [type(layer) for layer in layers]
        assert kinds == [nn.Linear, ACTIVATIONS[name]] * h_layers + [nn.Linear]


def test_initialization_is_pytorchs_and_depends_on_the_seed_alone():
    model = small_vae(h_dim=400)
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
        bound = 1 / math.sqrt(layer.in_features)
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    first = weights(small_vae(seed=1))
    torch.manual_seed(5)
    assert torch.equal(weights(small_vae(seed=1)), first)
    assert not torch.equal(weights(small_vae(seed=2)), first)


def test_the_seed_covers_the_layers_of_any_network(monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, "conv", Convolutional)
    model = small_vae(network="conv")
    torch.manual_seed(5)
    assert torch.equal(weights(small_vae(network="conv")), weights(model))
    save_vae(model, tmp_path / "vae", {})
    assert torch.equal(weights(load_vae(tmp_path / "vae")), weights(model))


def test_a_file_restores_the_model_and_describes_it(tmp_path):
    model, path = small_vae(**TINY), tmp_path / "vae.safetensors"
    save_vae(model, path, {"learning_rate": 1e-05})
    assert torch.equal(weights(load_vae(path)), weights(model))
    assert read_header(path) == {
        "architecture": DEFAULT | TINY | {"image_shape": [3, 4]},
        "provenance": {"learning_rate": 1e-05},
    }


def test_the_order_of_the_provenance_changes_no_byte(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_vae(small_vae(), first, {"seed": 0, "batch_size": 128})
    save_vae(small_vae(), second, {"batch_size": 128, "seed": 0})
    assert first.read_bytes() == second.read_bytes()


def with_header(header: str) -> bytes:
    save_file(small_vae(**TINY).state_dict(), "with_header", metadata={"header": header})
    return Path("with_header").read_bytes()


def described(**changes: object) -> bytes:
    return with_header(json.dumps({"architecture": DEFAULT | TINY | changes}))


INVALID = {
    "random bytes": lambda: bytes(range(256)) * 8,
    "empty": lambda: b"",
    "a wrong length": lambda: struct.pack("<Q", 2**60) + b"{}",
    "no header": lambda: with_header(""),
    "a header that is not JSON": lambda: with_header("{"),
    "a header of something else": lambda: with_header("{}"),
    "weights of another architecture": lambda: described(z_dim=4),
    "an unknown activation": lambda: described(activation="eval"),
    "an unknown likelihood": lambda: described(likelihood="gaussian"),
    "an unknown network": lambda: described(network="transformer"),
    "an unknown key": lambda: described(width=1),
}


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID)
def test_an_invalid_file_is_refused_in_one_line(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("vae.safetensors").write_bytes(content())
    with pytest.raises(UserError) as error:
        load_vae(Path("vae.safetensors"))
    assert error.value.subject == "vae.safetensors" and "\n" not in str(error.value)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError) as error:
        load_vae(tmp_path / "vae.safetensors")
    assert error.value.subject == str(tmp_path / "vae.safetensors")
