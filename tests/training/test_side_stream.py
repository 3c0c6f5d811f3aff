"""Gradients of weights on a second stream, without a GPU: its work is put off as long as it may."""

import weakref
from unittest.mock import MagicMock

import pytest
import torch
from helpers.models import gradients, small_vae

from pipeline.model.network import ACTIVATIONS, Batch
from pipeline.training.accelerated import perceptron
from pipeline.training.accelerated.layers import Columns, Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.accelerated.side_stream import SideStream


class LateStream(SideStream):
    """Nothing happens before `join`."""

    def __call__(self, work, *tensors):
        self.late = [*getattr(self, "late", []), (work, tensors)]

    def join(self):
        for work, tensors in self.late:
            work(*tensors)
        self.late = []


def compute(layer_type, activation):
    model = small_vae(h_layers=2, activation=activation)
    rng = torch.Generator().manual_seed(0)
    x, eps = torch.rand(9, 784, generator=rng), torch.randn(9, 1, 4, generator=rng)
    gradient = PerceptronGradient(model, layer_type)
    gradient(Batch(gradient.arrange(x)), eps)
    return gradients(model)


@pytest.mark.parametrize("layer_type", [Rows, Columns])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_that_the_side_stream_reads_is_changed_before_it_has_ended(
    monkeypatch, layer_type, activation
):
    expected = compute(layer_type, activation)
    monkeypatch.setattr(perceptron, "SideStream", LateStream)
    assert torch.equal(compute(layer_type, activation), expected)


def test_memory_in_use_is_kept_until_the_main_stream_waits(monkeypatch):
    streams = {name: MagicMock() for name in ("Stream", "current_stream", "stream")}
    for name, stream in streams.items():
        monkeypatch.setattr(torch.cuda, name, stream)
    side, main = streams["Stream"].return_value, streams["current_stream"].return_value
    aside, tensor, results = SideStream(torch.device("cuda")), torch.ones(3), []
    alive = weakref.ref(tensor)
    aside(lambda values: results.append(values.sum()), tensor)
    side.wait_stream.assert_called_once_with(main)
    del tensor
    assert results == [3] and alive() is not None and not main.wait_stream.called
    aside.join()
    main.wait_stream.assert_called_once_with(side)
    assert alive() is None
