"""−log p(x) where it is known: in closed form for linear-Gaussian models, by integration for a one-dimensional z."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pipeline.evaluation import importance
from pipeline.evaluation.importance import (
    bernoulli_recon_of_draws,
    effective_sample_size,
    log_weights,
    neg_log_mean,
    prior_log_weights,
)
from pipeline.model.likelihood import bernoulli_recon
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import generator

SIGMA = 0.7
X_DIM = 12


class LinearGaussian:
    """Probabilistic PCA, x = W z + σ ε, with the best q of independent dimensions (Tipping & Bishop 1999)."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.z_dim = weight.shape[1]
        self.m = weight.T @ weight + SIGMA**2 * torch.eye(self.z_dim, dtype=weight.dtype)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu = torch.linalg.solve(self.m, self.weight.T @ x.T).T
        return mu, (SIGMA**2 / self.m.diagonal()).log().expand_as(mu)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.weight.T

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(X_DIM, dtype=x.dtype)
        return MultivariateNormal(torch.zeros(X_DIM, dtype=x.dtype), covariance).log_prob(x)


def gaussian_recon(mean: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    squares = ((x.unsqueeze(1) - mean) / SIGMA).square() + math.log(2 * math.pi * SIGMA**2)
    return 0.5 * squares.sum(dim=-1)


def linear(orthogonal: bool, n: int = 400, z_dim: int = 3) -> tuple[LinearGaussian, torch.Tensor]:
    """A model, whose posterior is q where the columns of W are orthogonal, and images that it has made."""
    draw = generator(0, "test")
    weight = torch.randn(X_DIM, z_dim, generator=draw, dtype=torch.float64)
    if orthogonal:
        weight = torch.linalg.qr(weight).Q * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    else:
        weight = 0.8 * weight + 0.2 * weight[:, :1]  # columns that are alike: the posterior's dimensions depend
    model = LinearGaussian(weight)
    z = torch.randn(n, z_dim, generator=draw, dtype=torch.float64)
    return model, model.decode(z) + SIGMA * torch.randn(n, X_DIM, generator=draw, dtype=torch.float64)


def bernoulli(z_dim: int, spread: float = 3.0) -> tuple[VAE, torch.Tensor]:
    """A VAE in float64 that has learnt nothing but decodes to something, and pixels."""
    model = VAE(x_dim=X_DIM, h_dim=16, z_dim=z_dim, h_layers=1, activation="tanh").double()
    model.reset_parameters(generator(1, "test"))
    with torch.no_grad():
        model.decoder[0].weight *= spread
        model.decoder[2].weight *= spread
    return model, torch.rand(50, X_DIM, generator=generator(2, "test"), dtype=torch.float64)


def standard_error(values: torch.Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    model, x = linear(orthogonal=True)
    log_w = log_weights(model, x, 5, recon=gaussian_recon)
    torch.testing.assert_close(log_w, model.log_prob(x).unsqueeze(1).expand(-1, 5), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        effective_sample_size(log_w), torch.full((len(x),), 5.0, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_with_the_best_mean_field_q_the_gap_is_the_known_one_and_closes_with_k():
    model, x = linear(orthogonal=False)
    exact = -model.log_prob(x)
    log_w = log_weights(model, x, 4096, recon=gaussian_recon)
    gaps = {k: neg_log_mean(log_w, k) - exact for k in (1, 4, 16, 64, 256, 1024, 4096)}
    gap = 0.5 * (model.m.diagonal().log().sum() - model.m.logdet()).item()
    assert gap > 0.1, "something to close"
    assert gaps[1].mean().item() == pytest.approx(gap, abs=3 * standard_error(gaps[1]))
    for few, many in zip(list(gaps.values())[:-1], list(gaps.values())[1:], strict=True):
        assert (many - few).mean().item() <= 3 * standard_error(many - few)
    assert gaps[4096].mean().item() == pytest.approx(0, abs=3 * standard_error(gaps[4096]))


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_a_one_dimensional_z_against_integration(scale):
    model, x = bernoulli(z_dim=1)
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        log_joint = -torch.stack([bernoulli_recon(model.decode(z), image.expand(len(z), -1)) for image in x])
    log_joint -= 0.5 * (z.squeeze(1).square() + math.log(2 * math.pi))
    exact = -(log_joint.logsumexp(dim=1) + math.log(24 / 40_000))
    log_w = log_weights(model, x, 20_000, scale=scale)
    found = neg_log_mean(log_w)
    # Of one image: the delta method's error of the logarithm of a mean.
    errors = (1 / effective_sample_size(log_w) - 1 / 20_000).clamp(min=0).sqrt()
    assert ((found - exact).abs() <= 4 * errors + 1e-6).all()
    prior = prior_log_weights(model, x, 20_000)
    errors = (1 / effective_sample_size(prior) - 1 / 20_000).clamp(min=0).sqrt()
    assert ((neg_log_mean(prior) - exact).abs() <= 4 * errors + 1e-6).all()


def test_an_image_has_the_same_weights_in_any_chunk_and_company(monkeypatch):
    model, x = bernoulli(z_dim=3)
    whole = log_weights(model, x, 40, scale=1.4)
    torch.testing.assert_close(log_weights(model, x[:7], 40, scale=1.4), whole[:7], rtol=0, atol=1e-12)
    prior = prior_log_weights(model, x, 40)
    for rows in (1, 7, 40, 97):
        monkeypatch.setitem(importance.ROWS, "cpu", rows)
        torch.testing.assert_close(log_weights(model, x, 40, scale=1.4), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(prior_log_weights(model, x, 40), prior, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [1, 5, 12, 196, 784])
def test_recon_of_draws_is_the_cross_entropy(width):
    draw = generator(3, "test")
    logits = 20 * torch.randn(4, 6, width, generator=draw, dtype=torch.float64)
    x = torch.rand(4, width, generator=draw, dtype=torch.float64)
    expected = bernoulli_recon(logits, x.unsqueeze(1).expand_as(logits))
    torch.testing.assert_close(bernoulli_recon_of_draws(logits, x), expected, rtol=1e-12, atol=1e-10)
    in_single = bernoulli_recon_of_draws(logits.float(), x.float())
    torch.testing.assert_close(in_single.double(), expected, rtol=2e-6, atol=1e-4)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-1000.0, 1000.0]).repeat(392).expand(1, 3, -1)
    x = torch.tensor([0.0, 1.0]).repeat(392).unsqueeze(0)
    assert bernoulli_recon_of_draws(logits, x).tolist() == [[0.0] * 3]
    assert bernoulli_recon_of_draws(logits, 1 - x).tolist() == [[784_000.0] * 3]
    assert torch.isfinite(neg_log_mean(torch.tensor([[-784_000.0, 0.0]]))).all()


def test_the_effective_sample_size_counts_equal_weights():
    log_w = torch.tensor([[-700.3] * 8, [0.0, *[-1e4] * 7], [3.0, 3.0, *[-1e4] * 6]])
    assert effective_sample_size(log_w).tolist() == pytest.approx([8, 1, 2])


def test_groups_of_fewer_weights_leave_none_that_is_whole_out():
    log_w = torch.arange(7.0).log().unsqueeze(0)
    assert neg_log_mean(log_w, 3).item() == pytest.approx(-(math.log(1) + math.log(4)) / 2)
    assert neg_log_mean(log_w).item() == pytest.approx(-math.log(3))


@pytest.mark.parametrize(("num_samples", "scale"), [(0, 1.0), (5, 0.0), (5, float("nan"))])
def test_nothing_to_draw_is_refused(num_samples, scale):
    model, x = bernoulli(z_dim=1)
    with pytest.raises(ValueError, match="at least one draw"):
        log_weights(model, x, num_samples, scale=scale)


@pytest.mark.parametrize("k", [0, 6])
def test_a_bound_from_more_weights_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match="all of the 5 weights"):
        neg_log_mean(torch.zeros(2, 5), k)
