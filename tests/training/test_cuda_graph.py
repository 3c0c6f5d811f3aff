"""The CUDA graph without a GPU: a recorder takes the place of the graph.

While it captures, it keeps every operation of PyTorch with its tensors. A replay executes them
again on the same memory; whatever Python computed during the capture stays constant, as on a GPU.
"""

from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from helpers.models import PRECISIONS, small_vae, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.data.datasets import hold_out
from pipeline.training import accelerated
from pipeline.training import fit as fit_module
from pipeline.training.accelerated.cuda_graph import Graphs
from pipeline.training.accelerated.layers import Rows
from pipeline.training.fit import fit
from pipeline.training.optimizer import Optimizer

# They read a value back, which CUDA refuses during a capture.
REFUSED = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")


class Recorder(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        assert not str(operation).startswith(REFUSED), f"{operation} while capturing"
        results = operation(*arguments, **(keywords or {}))
        self.operations.append((operation, arguments, keywords or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        for operation, arguments, keywords, results in self.operations:
            values = tree_leaves(operation(*arguments, **keywords))
            for place, value in zip(tree_leaves(results), values, strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@pytest.fixture
def graphs(monkeypatch):
    """All graphs that are recorded; `fit` records them as on CUDA."""
    recorded, warmed_up, events = [], [], []
    side, main = MagicMock(), MagicMock()
    side.wait_stream = lambda other: events.append("the side waits" if other is main else other)
    main.wait_stream = lambda other: events.append("main waits" if other is side else other)

    def new_graph():
        recorded.append(Recorder())
        return recorded[-1]

    def use_stream(stream):
        warmed_up.append(stream)
        return nullcontext()

    def capture(graph, stream):
        assert stream is warmed_up[-1], "warm-up and capture use the same stream"
        events.append("recording")
        return graph

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", use_stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: "before")
    monkeypatch.setattr(torch.cuda, "set_rng_state", events.append)
    monkeypatch.setattr(fit_module, "_as_graphs", Graphs)
    monkeypatch.setitem(fit_module.STEPS, "cpu", 512)
    monkeypatch.setattr(accelerated, "Columns", Rows)
    yield recorded
    assert events == ["the side waits", "recording", "main waits", "before"] * len(recorded)


@pytest.fixture(scope="module")
def data(small_train):
    return hold_out(small_train, 100)


def train(data, precision="float32", **architecture):
    """With a learning rate that changes from epoch to epoch."""
    schedule = {"lr_schedule": "cosine", "num_epochs": 3}
    optimizer = Optimizer(small_vae(**architecture), 1e-3, precision, **schedule)
    records = list(fit(optimizer, *data, range(1, 4), batch_size=128, seed=0))
    return records, weights(optimizer.model)


CASES = [
    {}, {"activation": "gelu"}, {"activation": "tanh", "h_layers": 2},
    {"network": "conv", "num_classes": 10}, {"likelihood": "continuous_bernoulli"},
    {"likelihood": "gaussian", "sigma": 0.2}, {"likelihood": "gaussian"},
    {"likelihood": "gaussian", "sigma": "optimal"},
]  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", CASES)
def test_replayed_steps_give_the_bits_of_executed_ones(
    data, graphs, monkeypatch, precision, architecture
):
    """The written-out gradient and autograd; the last of four batches is smaller."""
    records, vector = train(data, precision, **architecture)
    assert len(graphs) == 1
    monkeypatch.setattr(fit_module, "_as_graphs", lambda steps, *_: steps)
    expected_records, expected = train(data, precision, **architecture)
    assert records == expected_records and torch.equal(vector, expected)


def test_a_long_epoch_replays_one_graph_several_times_and_a_smaller_one_for_the_rest(
    data, graphs, monkeypatch
):
    expected = train(data)
    assert len(graphs) == 1
    monkeypatch.setitem(fit_module.STEPS, "cpu", 1)
    records, vector = train(data)
    assert len(graphs) == 1 + 2
    assert records == expected[0] and torch.equal(vector, expected[1])
