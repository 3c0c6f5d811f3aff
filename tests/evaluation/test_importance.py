"""−log p(x) in closed form for linear-Gaussian models, and by integration for one-dimensional z."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.models import show_labels, small_vae
from torch.distributions import MultivariateNormal

from pipeline.evaluation import importance
from pipeline.evaluation.importance import (
    effective_sample_size,
    log_weights,
    neg_log_mean,
    noise,
    prior_log_weights,
)
from pipeline.evaluation.reconstruction import bernoulli
from pipeline.model.network import Batch, Posterior
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator

SIGMA = 0.7
D = 12


class LinearGaussian:
    """Probabilistic PCA, x = W z + σ ε, with the best q of independent dimensions.

    (Tipping & Bishop 1999.)
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.m = weight.T @ weight + SIGMA**2 * torch.eye(weight.shape[1], dtype=weight.dtype)

    def encode(self, batch: Batch) -> Posterior:
        mu = torch.linalg.solve(self.m, self.weight.T @ batch.x.T).T
        return Posterior(mu, (SIGMA**2 / self.m.diagonal()).log().expand_as(mu))

    def decode(self, z: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        return z @ self.weight.T

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(D, dtype=x.dtype)
        return MultivariateNormal(torch.zeros(D, dtype=x.dtype), covariance).log_prob(x)


def gaussian(mean: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    squares = ((x.unsqueeze(1) - mean) / SIGMA).square() + math.log(2 * math.pi * SIGMA**2)
    return 0.5 * squares.sum(dim=-1)


def linear_gaussian(orthogonal: bool) -> tuple[LinearGaussian, Batch]:
    """A model, whose posterior is q if the columns of W are orthogonal, and images from it."""
    draw = generator(0, "test")
    weight = torch.randn(D, 3, generator=draw, dtype=torch.float64)
    if orthogonal:
        weight = torch.linalg.qr(weight).Q * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    else:
        weight = 0.8 * weight + 0.2 * weight[:, :1]  # columns that correlate
    model = LinearGaussian(weight)
    z = torch.randn(400, 3, generator=draw, dtype=torch.float64)
    x = z @ weight.T + SIGMA * torch.randn(400, D, generator=draw, dtype=torch.float64)
    return model, Batch(x)


def bernoulli_vae(z_dim: int) -> tuple[VAE, Batch]:
    """A float64 model of 3 × 4 pixels whose decoder reacts to z, and images."""
    model = small_vae(z_dim=z_dim, h_dim=16, image_shape=(3, 4), activation="tanh").double()
    with torch.no_grad():
        for layer in model.network.decoder[::2]:
            layer.weight *= 3
    x = torch.rand(50, D, generator=generator(2, "test"), dtype=torch.float64)
    return model, Batch(x, torch.zeros(50, dtype=torch.int64))


def draws(batch: Batch, num_samples: int, z_dim: int) -> torch.Tensor:
    return noise(num_samples, z_dim, range(len(batch.x))).to(batch.x)


def standard_error(values: torch.Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


def test_with_the_exact_posterior_every_weight_is_p_of_x():
    model, batch = linear_gaussian(orthogonal=True)
    log_w = log_weights(model, batch, draws(batch, 5, 3), gaussian)
    expected = model.log_prob(batch.x).unsqueeze(1).expand(-1, 5)
    torch.testing.assert_close(log_w, expected, rtol=0, atol=1e-10)
    assert effective_sample_size(log_w).tolist() == pytest.approx([5.0] * 400, abs=1e-9)


def test_with_the_best_mean_field_q_the_gap_is_the_known_one_and_closes_with_k():
    model, batch = linear_gaussian(orthogonal=False)
    exact = -model.log_prob(batch.x)
    log_w = log_weights(model, batch, draws(batch, 4096, 3), gaussian)
    gaps = [neg_log_mean(log_w, 4**power) - exact for power in range(7)]
    gap = 0.5 * (model.m.diagonal().log().sum() - model.m.logdet()).item()
    assert gap > 0.1
    assert gaps[0].mean().item() == pytest.approx(gap, abs=3 * standard_error(gaps[0]))
    for few, many in pairwise(gaps):
        assert (many - few).mean().item() <= 3 * standard_error(many - few)
    assert gaps[-1].mean().item() == pytest.approx(0, abs=3 * standard_error(gaps[-1]))


@pytest.mark.parametrize("proposal", [1.0, 1.4, "prior"])
def test_a_one_dimensional_z_agrees_with_integration(proposal):
    model, batch = bernoulli_vae(1)
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64).unsqueeze(1)
    log_prior = -0.5 * (z.squeeze(1).square() + math.log(2 * math.pi))
    with torch.no_grad():
        log_joint = log_prior - bernoulli(model.decode(z).unsqueeze(0), batch.x)
    exact = -(log_joint.logsumexp(dim=1) + math.log(24 / 40_000))
    if proposal == "prior":
        log_w = prior_log_weights(model, batch, 20_000, bernoulli)
    else:
        log_w = log_weights(model, batch, draws(batch, 20_000, 1), bernoulli, proposal)
    # The delta method's error of the logarithm of a mean.
    errors = (1 / effective_sample_size(log_w) - 1 / 20_000).clamp(min=0).sqrt()
    assert ((neg_log_mean(log_w, 20_000) - exact).abs() <= 4 * errors + 1e-6).all()


@pytest.mark.parametrize("rows", [1, 7, 40, 97])
def test_weights_do_not_depend_on_chunks_or_other_images(monkeypatch, rows):
    model, batch = bernoulli_vae(3)

    def compute(batch: Batch) -> torch.Tensor:
        own = log_weights(model, batch, draws(batch, 40, 3), bernoulli, 1.4)
        return torch.stack([own, prior_log_weights(model, batch, 40, bernoulli)])

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


def test_labels_reach_the_decoder():
    model, batch = bernoulli_vae(3)
    show_labels(model)
    labeled, eps = batch._replace(y=torch.arange(50)), draws(batch, 1, 3)

    def expected(batch: Batch) -> torch.Tensor:
        return -bernoulli(batch.y.double().view(-1, 1, 1).expand(-1, 1, D), batch.x)

    gain = log_weights(model, labeled, eps, bernoulli) - log_weights(model, batch, eps, bernoulli)
    torch.testing.assert_close(gain, expected(labeled) - expected(batch))
    third = Batch(batch.x[3:4], labeled.y[3:4])
    torch.testing.assert_close(prior_log_weights(model, third, 1, bernoulli), expected(third))


def test_the_effective_sample_size_counts_equal_weights():
    log_w = torch.tensor([[-700.3] * 8, [0.0, *[-1e4] * 7], [3.0, 3.0, *[-1e4] * 6]])
    assert effective_sample_size(log_w).tolist() == pytest.approx([8, 1, 2])


def test_the_bound_of_k_weights_is_the_mean_over_all_groups_of_k():
    log_w = torch.arange(7.0).log().unsqueeze(0)
    assert neg_log_mean(log_w, 3).item() == pytest.approx(-(math.log(1) + math.log(4)) / 2)
    assert neg_log_mean(log_w, 7).item() == pytest.approx(-math.log(3))
    assert torch.isfinite(neg_log_mean(torch.tensor([[-784_000.0, 0.0]]), 2)).all()
