from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import UserError
from pipeline.runtime import device
from pipeline.runtime.device import prepare_device


@pytest.fixture(autouse=True)
def restored():
    """PyTorch's settings after the test."""
    yield
    torch.set_deterministic_debug_mode("default")


def test_auto_is_the_best_device_of_the_machine():
    best = "mps" if torch.backends.mps.is_available() else "cpu"
    expected = "cuda" if torch.cuda.is_available() else best
    assert prepare_device("auto").type == expected
    assert prepare_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "mps"])
def test_a_missing_device_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError) as error:
        prepare_device(name)
    assert error.value.subject == "params.yaml: device" and name in str(error.value)


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Three GPUs, as far as the choice among them is concerned."""
    monkeypatch.chdir(tmp_path)
    models = [SimpleNamespace(name=name, uuid=i) for i, name in enumerate("ABA")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", models.__getitem__)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    yield
    assert len(chosen) == 1


@pytest.mark.parametrize(("name", "allowed"), [("cuda", ["0", "2"]), ("cuda:1", ["1"])])
@pytest.mark.usefixtures("gpus")
def test_any_gpu_of_the_first_ones_model_may_be_used_unless_one_is_named(
    monkeypatch, name, allowed
):
    offered = []
    monkeypatch.setattr(device, "reserve_gpu", lambda uuids: offered.extend(uuids) or 0)
    assert str(prepare_device(name).index) == allowed[0]
    assert offered == allowed
    assert torch.are_deterministic_algorithms_enabled()
