import pytest
import torch

from pipeline.errors import InputError
from pipeline.runtime.device import prepare_device


@pytest.fixture(autouse=True)
def put_back():
    yield
    torch.use_deterministic_algorithms(False)


def test_auto_takes_the_best_there_is():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert prepare_device("auto", "params.yaml").type == expected
    assert prepare_device("cpu", "params.yaml").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    available = torch.backends.mps.is_available() if name == "mps" else torch.cuda.is_available()
    if available:
        pytest.skip(f"this machine has {name}")
    with pytest.raises(InputError, match=rf"^params.yaml: device: {name} .*device: auto"):
        prepare_device(name, "params.yaml")


def test_a_gpu_too_many_is_refused_by_name():
    with pytest.raises(InputError, match=r"^params.yaml: device: cuda:99 .*device: auto"):
        prepare_device("cuda:99", "params.yaml")
