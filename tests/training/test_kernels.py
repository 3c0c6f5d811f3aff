"""A step on a GPU that does not exist: which kernels it would launch.

PyTorch's fake tensors have a device, shape and type but no numbers.
"""

import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from helpers.models import small_vae, weights
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model.network import Batch
from pipeline.model.objective import Objective
from pipeline.training import optimizer as optimizer_module
from pipeline.training.accelerated.layers import Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.optimizer import Optimizer, piece_size

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch is built without CUDA")
KERNELS = {"float32": 30, "bfloat16": 35}  # of a step with one hidden layer
# What PyTorch lists as refused in deterministic mode, some of it with certain arguments only.
REFUSED = {
    name.rstrip("_")
    for name in re.findall(
        r"`(?:torch\.)?(?:\w+\.)*(\w+)`",
        torch.use_deterministic_algorithms.__doc__.partition(":class:`RuntimeError` when ``mode")[
            2
        ],
    )
}
NO_KERNELS = ("prim.", "aten.empty", "aten.detach")


class Launches(TorchDispatchMode):
    """The operations of PyTorch that compute, and the devices of their tensors."""

    def __init__(self):
        super().__init__()
        self.operations, self.devices = [], set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        leaves = tree_leaves((arguments, keywords))
        self.devices |= {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if not (operation.is_view or str(operation).startswith(NO_KERNELS)):
            self.operations.append(operation)
        if operation.overloadpacket is torch.ops.aten._fused_adamw_:
            self.num_pieces, self.rate = len(arguments[0]), keywords["lr"]
            return None  # in place; it has no version for fake tensors with every kind of rate
        return operation(*arguments, **(keywords or {}))


def on_gpu(dtype, **architecture):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            return small_vae(**architecture)
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def launches(monkeypatch):
    """Records a step of a model on a fake cuda:0 or, without gradient, its loss."""
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())

    def record(precision="float32", objective=None, **architecture):
        model = on_gpu(torch.float32, **architecture)
        # Fake tensors can neither be copied nor converted in place.
        converted = SimpleNamespace(to=lambda dtype: on_gpu(dtype, **architecture))
        monkeypatch.setattr(optimizer_module.copy, "deepcopy", lambda _: converted)
        optimizer = Optimizer(model, 1e-3, precision, lr_schedule="cosine", num_epochs=2)
        optimizer.begin_epoch(1)
        with torch.device("cuda"):
            batch = Batch(torch.rand(8, 784), torch.zeros(8).long())
            eps, kl_weight = torch.randn(8, 5 if objective else 1, 4), torch.ones(())
        if objective:
            with Launches() as found, torch.no_grad():
                objective(optimizer.working, batch, eps, kl_weight)
        else:
            gradient = PerceptronGradient(optimizer.working, Rows, model)
            with Launches() as found:
                gradient(batch, eps)
                optimizer.step()
        return found

    with FakeTensorMode():
        yield record


@pytest.mark.parametrize("precision", KERNELS)
def test_a_step_has_few_kernels(launches, precision):
    found = launches(precision)
    assert len(found.operations) == KERNELS[precision]
    assert found.rate.dtype == torch.float32, "what the kernel reads"
    assert found.num_pieces > 8, "Adam fills the device"


ELBO, IWAE = Objective(), Objective("iwae", num_samples=5)
CASES = [
    {}, {"precision": "bfloat16"}, {"precision": "tf32", "activation": "gelu", "h_layers": 2},
    {"objective": IWAE, "network": "conv", "precision": "bfloat16"},
    {"objective": Objective(free_bits=0.1), "h_layers": 2},
    {"objective": ELBO, "num_classes": 10, "likelihood": "gaussian", "sigma": "optimal"},
    {"objective": IWAE, "prior": "vamp", "likelihood": "continuous_bernoulli"},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_all_tensors_are_on_the_gpu_and_every_operation_can_run_there(launches, case):
    found = launches(**case)
    assert found.devices == {"cuda"}
    assert {"histc", "put", "bincount"} <= REFUSED and "index_add" not in REFUSED
    for operation in set(found.operations):
        keys = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
        name = operation.name()
        assert any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys), name
        assert torch.Tag.nondeterministic_seeded not in operation.tags, name
        base = operation.overloadpacket.__name__.removesuffix("_backward").rstrip("_")
        assert base not in REFUSED, name


def test_one_launch_of_adam_takes_all_pieces(monkeypatch):
    """And the pieces are updated as the whole tensors are."""
    tensors = [torch.zeros(size) for size in (400 * 784, 400, 400 * 40, 40, 20 * 400, 784)]
    for cuda, most in [("13.2", 252), ("12.8", 36), (None, 36)]:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        size = piece_size(tensors)
        pieces = [piece for tensor in tensors for piece in tensor.split(size)]
        assert most / 2 < len(pieces) <= most
    whole, parts = (Optimizer(small_vae(), 1e-2) for _ in range(2))
    parts._piece = piece_size(list(parts.model.parameters()))
    parts._rows = parts._split_state()
    for optimizer in (whole, parts):
        for parameter in optimizer.model.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape)
        optimizer.step()
        optimizer.step()
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=1e-6, atol=1e-7)
