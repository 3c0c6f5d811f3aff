"""Importance weights: −log p(x) by integration over a one-dimensional z, noise, chunks, labels."""

import math

import pytest
import torch
from helpers.models import show_labels, small_vae

from pipeline.evaluation import importance
from pipeline.evaluation.importance import (
    draw_labels,
    effective_sample_size,
    log_weights,
    neg_log_mean,
    noise,
    prior_log_weights,
)
from pipeline.evaluation.reconstruction import bernoulli, bernoulli_clamped
from pipeline.model.network import Batch
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator

D = 12


def bernoulli_vae(z_dim: int, num_classes: int = 0) -> tuple[VAE, Batch]:
    """A float64 model of 3 × 4 pixels whose decoder reacts to z, and images."""
    small = {"h_dim": 16, "image_shape": (3, 4), "activation": "tanh"}
    model = small_vae(z_dim=z_dim, num_classes=num_classes, **small).double()
    with torch.no_grad():
        for layer in model.network.decoder[::2]:
            layer.weight *= 3
    x = torch.rand(50, D, generator=generator(2, "test"), dtype=torch.float64)
    return model, Batch(x, torch.zeros(50, dtype=torch.int64))


def draws(batch: Batch, num_samples: int, z_dim: int) -> torch.Tensor:
    return noise(num_samples, z_dim, range(len(batch.x))).to(batch.x)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("proposal", [1.0, 1.4, "prior"])
def test_a_one_dimensional_z_agrees_with_integration(proposal, num_classes):
    """And the sum over the labels of a conditional model."""
    model, batch = bernoulli_vae(1, num_classes)
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64).unsqueeze(1)
    log_prior = -0.5 * (z.squeeze(1).square() + math.log(2 * math.pi))
    classes = range(max(1, num_classes))
    with torch.no_grad():
        decoded = [model.decode(z, torch.full((len(z),), y)).unsqueeze(0) for y in classes]
        log_joint = torch.cat([log_prior - bernoulli(each, batch.x) for each in decoded], dim=1)
    exact = -(log_joint.logsumexp(dim=1) + math.log(24 / 40_000 / len(classes)))
    batch = draw_labels(model, batch, 20_000, range(50))
    if proposal == "prior":
        log_w = prior_log_weights(model, batch, 20_000, bernoulli)
    else:
        eps = draws(batch, 20_000, 1)
        (log_w,) = log_weights(model, batch, eps, bernoulli, scale=proposal)
    # The delta method's error of the logarithm of a mean.
    errors = (1 / effective_sample_size(log_w) - 1 / 20_000).clamp(min=0).sqrt()
    assert ((neg_log_mean(log_w, 20_000) - exact).abs() <= 4 * errors + 1e-6).all()


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("rows", [1, 7, 40, 97])
def test_weights_do_not_depend_on_chunks_or_other_images(monkeypatch, rows, num_classes):
    model, batch = bernoulli_vae(3, num_classes)
    batch = draw_labels(model, batch, 40, range(50))

    def compute(batch: Batch) -> torch.Tensor:
        own = log_weights(
            model, batch, draws(batch, 40, 3), bernoulli, bernoulli_clamped, scale=1.4
        )
        return torch.stack([*own, prior_log_weights(model, batch, 40, bernoulli)])

    whole = compute(batch)
    monkeypatch.setitem(importance.ROWS, "cpu", rows)
    monkeypatch.setattr(importance, "PRIOR_ROWS", rows)
    monkeypatch.setattr(importance, "PRIOR_IMAGES", rows)
    torch.testing.assert_close(compute(batch), whole, rtol=0, atol=1e-12)
    few = Batch(batch.x[:7], batch.y[:7])
    torch.testing.assert_close(compute(few), whole[:, :7], rtol=0, atol=1e-12)


def test_each_image_has_its_own_noise():
    torch.testing.assert_close(noise(5, 3, range(4))[2:], noise(5, 3, range(2, 4)), rtol=0, atol=0)
    assert not torch.equal(*noise(5, 3, range(2)))


def test_each_label_is_uniform_and_neighbors_are_all_classes():
    model, images = small_vae(num_classes=3), Batch(torch.rand(3000, 784))
    labels = draw_labels(model, images, 5, range(3000)).y
    for column in labels.T:
        shares = column.bincount() / 3000
        assert (shares - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / 3000)
    assert labels.unfold(1, 3, 1).sort().values.eq(torch.arange(3)).all()
    few = Batch(images.x[5:9])
    assert torch.equal(draw_labels(model, few, 9, range(5, 9)).y[:, :5], labels[5:9])


def test_labels_reach_the_decoder():
    model, batch = bernoulli_vae(3)
    show_labels(model)
    labeled, eps = batch._replace(y=torch.arange(50)), draws(batch, 1, 3)

    def expected(batch: Batch) -> torch.Tensor:
        return -bernoulli(batch.y.double().view(-1, 1, 1).expand(-1, 1, D), batch.x)

    own, other = (log_weights(model, each, eps, bernoulli)[0] for each in (labeled, batch))
    torch.testing.assert_close(own - other, expected(labeled) - expected(batch))
    third = Batch(batch.x[3:4], labeled.y[3:4])
    torch.testing.assert_close(prior_log_weights(model, third, 1, bernoulli), expected(third))


def test_the_bound_of_k_weights_is_the_mean_over_all_groups_of_k():
    log_w = torch.arange(7.0).log().unsqueeze(0)
    assert neg_log_mean(log_w, 3).item() == pytest.approx(-(math.log(1) + math.log(4)) / 2)
    assert neg_log_mean(log_w, 7).item() == pytest.approx(-math.log(3))
    assert torch.isfinite(neg_log_mean(torch.tensor([[-784_000.0, 0.0]]), 2)).all()
