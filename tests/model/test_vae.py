import json
import math
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import InputError
from pipeline.model.vae import ACTIVATIONS, VAE, load_model, save_model
from pipeline.runtime.randomness import generator

SMALL = {"x_dim": 12, "h_dim": 8, "z_dim": 3, "h_layers": 2, "activation": "tanh"}


def make(seed=0, **changes):
    model = VAE(**SMALL | changes)
    model.reset_parameters(generator(seed, "init"))
    return model


def weights(model):
    return torch.cat([p.detach().view(-1) for p in model.parameters()])


def test_default_architecture_is_the_seeds():
    model = make(x_dim=784, h_dim=400, z_dim=20, h_layers=1, activation="relu")
    seed = [(784, 400), (400, 20), (400, 20), (20, 400), (400, 784)]
    assert sum(p.numel() for p in model.parameters()) == sum(n * m + m for n, m in seed)


def test_shapes():
    mu, log_var = make().encode(torch.rand(5, 12))
    assert mu.shape == log_var.shape == (5, 3)
    assert make().decode(mu).shape == (5, 12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("h_layers", [1, 3])
def test_hidden_layers_and_activations_are_the_ones_asked_for(name, h_layers):
    model = make(activation=name, h_layers=h_layers)
    for half in (model.encoder, model.decoder):
        kinds = [type(layer) for layer in half]
        assert kinds == [nn.Linear, ACTIVATIONS[name]] * h_layers + [nn.Linear]


def test_initialization_is_pytorchs_and_belongs_to_the_seed():
    model = make(x_dim=784, h_dim=400)
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        bound = 1 / math.sqrt(layer.in_features)
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert torch.equal(weights(make(seed=1)), weights(make(seed=1)))
    assert not torch.equal(weights(make(seed=1)), weights(make(seed=2)))


def test_a_file_gives_the_model_back_and_describes_it(tmp_path):
    model, path = make(), tmp_path / "vae.safetensors"
    save_model(model, path, {"seed": 0, "learning_rate": 1e-05})
    loaded, header = load_model(path)
    assert torch.equal(weights(loaded), weights(model))
    assert header == {
        "architecture": SMALL,
        "likelihood": "bernoulli",
        "provenance": {"seed": 0, "learning_rate": 1e-05},
    }


def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path):
    code = """if True:
        import sys; from pathlib import Path
        from pipeline.model.vae import VAE, save_model; from pipeline.runtime.randomness import generator
        model = VAE(x_dim=12, h_dim=8, z_dim=3, h_layers=2, activation="tanh")
        model.reset_parameters(generator(0, "init"))
        save_model(model, Path(sys.argv[1]), {"seed": 0, "batch_size": 128})
    """
    paths = [tmp_path / name for name in ("a", "b.safetensors")]
    for path in paths:
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", code, path], check=True, cwd=root)
    assert paths[0].read_bytes() == paths[1].read_bytes()


class Planted:
    def __reduce__(self):
        return (Path("planted").write_text, ("executed",))


def bad_files(path):
    """Each way to be no model of this project, written to `path`."""
    yield "nothing there", lambda: path.unlink(missing_ok=True)
    yield "random bytes", lambda: path.write_bytes(bytes(range(256)) * 8)
    yield "empty", lambda: path.write_bytes(b"")
    yield "a pickle", lambda: path.write_bytes(pickle.dumps(Planted()))
    yield "a torch pickle", lambda: torch.save(Planted(), path)
    yield "no header", lambda: save_file({"w": torch.zeros(2)}, path)
    yield "a header that is no JSON", lambda: save_file({"w": torch.zeros(2)}, path, metadata={"vae": "{"})
    yield (
        "another architecture",
        lambda: save_file(
            make().state_dict(), path, metadata={"vae": json.dumps({"architecture": SMALL | {"z_dim": 4}})}
        ),
    )
    yield (
        "an unknown activation",
        lambda: save_file(
            make().state_dict(), path, metadata={"vae": json.dumps({"architecture": SMALL | {"activation": "eval"}})}
        ),
    )
    yield "a header that lies about its length", lambda: path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


@pytest.mark.parametrize("kind", [kind for kind, _ in bad_files(Path("x"))])
def test_what_is_no_model_is_refused_in_one_line_and_nothing_is_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vae.safetensors"
    dict(bad_files(path))[kind]()
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert "vae.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("planted").exists()
