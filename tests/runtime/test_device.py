from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from pipeline.errors import UserError
from pipeline.runtime import device
from pipeline.runtime.device import float32_products, jobs_per_gpu, pinned, prepare_device, send


@pytest.fixture(autouse=True)
def restored():
    """PyTorch's settings after the test."""
    products = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [each.fp32_precision for each in products]
    yield
    torch.set_deterministic_debug_mode("default")
    for each, precision in zip(products, before, strict=True):
        each.fp32_precision = precision


def test_auto_is_cuda_if_there_is_a_gpu():
    assert prepare_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert prepare_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_gpu_that_pytorch_cannot_use_is_reported_in_its_words(monkeypatch, tmp_path, name):
    """Never a silent run on the CPU, unless the GPU is hidden or another device asked for."""
    messages = ["The NVIDIA driver on your system is too old (found 11040).\nUpdate it."]

    def fail():
        raise RuntimeError(messages[0])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(device, "DRIVER", tmp_path)
    with pytest.raises(UserError, match=r"is too old \(found 11040\)\. Without it") as error:
        prepare_device(name)
    assert error.value.subject == "params.yaml: device" and "\n" not in str(error.value)
    assert prepare_device("cpu").type == "cpu"
    messages[0] = "No CUDA GPUs are available"
    assert prepare_device("auto").type == "cpu"


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
    models = [
        SimpleNamespace(name=name, uuid=i, total_memory=85 * 10**9) for i, name in enumerate("ABA")
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", models.__getitem__)
    monkeypatch.setattr(torch, "ones", MagicMock())
    chosen = []
    shares = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    yield
    assert len(chosen) == 1 and shares == [0.9 / 5]


@pytest.mark.parametrize(("name", "allowed"), [("cuda", ["0", "2"]), ("cuda:1", ["1"])])
@pytest.mark.usefixtures("gpus")
def test_any_gpu_of_the_first_ones_model_may_be_used_unless_one_is_named(
    monkeypatch, name, allowed
):
    offered = []
    monkeypatch.setattr(device, "reserve_gpu", lambda *request: offered.append(request) or 0)
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # by an environment variable, say
    assert str(prepare_device(name).index) == allowed[0]
    assert offered == [(allowed, 5)]
    assert torch.are_deterministic_algorithms_enabled()
    for products in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        assert products.fp32_precision == "ieee"


@pytest.mark.usefixtures("gpus")
def test_a_gpu_without_code_for_it_is_reported(monkeypatch):
    message = "CUDA error: no kernel image is available for execution on the device\nCompile with"
    monkeypatch.setattr(torch, "ones", MagicMock(side_effect=RuntimeError(message)))
    with pytest.raises(UserError, match="cannot use A: CUDA error: no kernel image is") as error:
        prepare_device("cuda")
    assert "\n" not in str(error.value)


def test_float32_products_are_exact_outside_of_the_block():
    matmul = torch.backends.cuda.matmul
    with pytest.raises(KeyError), float32_products("tf32"):
        assert matmul.fp32_precision == "tf32"
        raise KeyError
    assert matmul.fp32_precision == "ieee"


def test_what_a_gpu_copies_is_pinned(monkeypatch):
    values = torch.ones(3)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: "pinned")
    assert pinned(values, torch.device("cuda")) == "pinned"
    assert pinned(values, torch.device("mps")) is values, "it copies from there while it may change"
    assert send(values, torch.device("cpu")) is values


def test_the_memory_of_a_gpu_decides_how_many_experiments_share_it(monkeypatch):
    sizes = [6 * 10**9, 25 * 10**9, 85 * 10**9]  # of an 80 GiB card PyTorch reports 85
    assert [jobs_per_gpu(size) for size in sizes] == [1, 1, 5]
    monkeypatch.setenv("GPU_JOBS", "3")
    assert [jobs_per_gpu(size) for size in sizes] == [3, 3, 3]


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_bad_number_of_experiments_per_gpu_is_refused(monkeypatch, value):
    monkeypatch.setenv("GPU_JOBS", value)
    with pytest.raises(UserError) as error:
        jobs_per_gpu(85 * 10**9)
    assert error.value.subject == "GPU_JOBS" and value in str(error.value)
