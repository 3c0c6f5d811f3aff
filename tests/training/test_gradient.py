"""The written-out gradient against autograd."""

import pytest
import torch
from helpers.models import gradients, small_vae

from pipeline.model.network import ACTIVATIONS, Batch
from pipeline.training.accelerated import checked_gradient
from pipeline.training.accelerated.layers import Columns, Rows
from pipeline.training.accelerated.perceptron import PerceptronGradient
from pipeline.training.gradient import AutogradGradient
from pipeline.training.optimizer import Optimizer

SHAPES = [(400, 1, 20), (33, 3, 5), (2, 2, 1)]  # h_dim, h_layers, z_dim: even, odd, tiny


def batch(n, z_dim=4, dtype=torch.float32):
    rng = torch.Generator().manual_seed(n)
    x = torch.rand(n, 784, generator=rng, dtype=dtype)
    return Batch(x), torch.randn(n, 1, z_dim, generator=rng, dtype=dtype)


def compute(gradient, batch, eps):
    """Set the gradients, return the terms."""
    arranged = batch._replace(x=gradient.arrange(batch.x))
    return gradient.terms(arranged.x, gradient(arranged, eps))


@pytest.mark.parametrize("layer_type", [Columns, Rows])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("h_dim", "h_layers", "z_dim"), SHAPES)
@pytest.mark.parametrize("n", [1, 77])
def test_it_equals_autograd(layer_type, activation, h_dim, h_layers, z_dim, n):
    model = small_vae(h_dim=h_dim, h_layers=h_layers, z_dim=z_dim, activation=activation).double()
    inputs = batch(n, z_dim, torch.float64)
    gradient = PerceptronGradient(model, layer_type)
    for parameter in model.parameters():
        parameter.grad.fill_(torch.nan)  # whatever was there is not added to
    terms, found = compute(gradient, *inputs), gradients(model)
    expected_terms = compute(AutogradGradient(model), *inputs)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-12, atol=1e-12)
    scale = gradients(model).abs().max().item()
    torch.testing.assert_close(found, gradients(model), rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize(
    ("h_dim", "precision", "threads"),
    [(32, "float32", 2), (33, "float32", 1), (32, "bfloat16", 2)],
)
def test_on_a_cpu_columns_of_even_width_may_use_two_threads(h_dim, precision, threads):
    optimizer = Optimizer(small_vae(h_dim=h_dim), 1e-3, precision)
    gradient = checked_gradient(optimizer, *batch(8))
    assert gradient.model is optimizer.working
    assert isinstance(gradient.encoder[0], Columns) and gradient.max_threads == threads


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", ["weight", "bias"])
def test_a_wrong_gradient_is_refused(monkeypatch, precision, layer):
    def wrong(self, a, d):
        set_gradients(self, a, d)
        getattr(self, f"{layer}_grad").mul_(1.001)

    set_gradients = Columns.set_gradients
    monkeypatch.setattr(Columns, "set_gradients", wrong)
    optimizer = Optimizer(small_vae(), 1e-3, precision)
    with pytest.raises(Exception, match=rf"in network\.encoder\.0\.{layer}"):
        checked_gradient(optimizer, *batch(8))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_that_is_wrong_only_as_it_is_trained_is_refused(monkeypatch, precision):
    """As that of a broken kernel would be."""

    def wrong(self, a, d):
        set_gradients(self, a, d)
        self.bias_grad.mul_(1 if a.dtype == torch.float64 else 2)

    set_gradients = Columns.set_gradients
    monkeypatch.setattr(Columns, "set_gradients", wrong)
    with pytest.raises(ValueError, match=r"in network\.encoder\.0\.bias"):
        checked_gradient(Optimizer(small_vae(), 1e-3, precision), *batch(8))


@pytest.mark.parametrize("n", [1, 5000])
def test_rounding_is_no_difference_at_any_size_of_a_batch(n):
    for activation in ACTIVATIONS:
        optimizer = Optimizer(small_vae(h_dim=200, activation=activation), 1e-3)
        assert checked_gradient(optimizer, *batch(n)).max_threads == 2
