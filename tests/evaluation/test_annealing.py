"""Annealed importance sampling where log p(x) is known."""

import math

import pytest
import torch
from helpers.models import show_labels, small_vae
from torch.distributions import MultivariateNormal

from pipeline.data.datasets import Split
from pipeline.evaluation import annealing
from pipeline.evaluation.annealing import annealed_bounds, chain_bounds
from pipeline.evaluation.importance import log_weights, neg_log_mean, noise
from pipeline.evaluation.reconstruction import bernoulli
from pipeline.model.likelihood import Likelihood
from pipeline.model.network import Batch
from pipeline.runtime.randomness import generator

SIGMA = 0.5


class LinearGaussian(Likelihood):
    """N(x | outputs, σ² I)."""

    def neg_log_prob(self, outputs, x):
        terms = (x - outputs).square() / SIGMA**2 + math.log(2 * math.pi * SIGMA**2)
        return 0.5 * terms.sum(dim=-1)


@pytest.fixture
def linear():
    """A model whose decoder is affine, with an encoder that is far from its posterior; images."""
    model = small_vae(z_dim=3, h_dim=8, image_shape=(3, 4)).double()
    model.likelihood = LinearGaussian(model.architecture)
    first, last = model.network.decoder[0], model.network.decoder[-1]
    model.network.decoder = torch.nn.Sequential(first, last)
    with torch.no_grad():
        first.weight *= 1.5
    x = torch.rand(8, 12, generator=generator(3, "test"), dtype=torch.float64)
    return model, Batch(x, torch.zeros(8, dtype=torch.int64))


def test_it_equals_log_p_of_a_linear_gaussian_model(linear):
    model, batch = linear
    first, last = model.network.decoder
    weight = (last.weight @ first.weight).detach()
    mean = (last.weight @ first.bias + last.bias).detach()
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(12, dtype=torch.float64)
    exact = -MultivariateNormal(mean, covariance).log_prob(batch.x)
    bound = chain_bounds(
        model, batch, range(8), generator(0, "test"), num_chains=300, num_steps=300
    )
    assert (bound - exact).abs().mean() < 0.02
    # As many draws from the encoder's q are further away.
    (plain,) = log_weights(model, batch, noise(300, 3, range(8)).double(), _recon(model))
    assert (neg_log_mean(plain, 300) - exact).abs().mean() > 0.03


def _recon(model):
    return lambda outputs, x: model.likelihood.neg_log_prob(outputs, x.unsqueeze(1))


def test_it_agrees_with_50000_draws_for_a_mixture_and_a_perceptron(linear):
    """A decoder that is not linear, and a prior with weights."""
    _, batch = linear
    model = small_vae(z_dim=3, h_dim=8, image_shape=(3, 4), activation="tanh", prior="mixture")
    model = model.double()
    with torch.no_grad():
        model.network.decoder[0].weight *= 3
    eps = noise(50_000, 3, range(8)).double()
    (many,) = log_weights(model, batch, eps, bernoulli, scale=1.4)
    bound = chain_bounds(
        model, batch, range(8), generator(0, "test"), num_chains=300, num_steps=200
    )
    assert (bound - neg_log_mean(many, 50_000)).abs().mean() < 0.02


def test_a_step_leaves_its_distribution_invariant(linear):
    """Exact draws of the posterior, moved at β = 1: their moments stay."""
    model, batch = linear
    first, last = model.network.decoder
    weight = (last.weight @ first.weight).detach()
    mean = (last.weight @ first.bias + last.bias).detach()
    precision = torch.eye(3, dtype=torch.float64) + weight.T @ weight / SIGMA**2
    center = torch.linalg.solve(precision, weight.T @ (batch.x[0] - mean) / SIGMA**2)
    posterior = MultivariateNormal(center, precision_matrix=precision)
    rows = Batch(batch.x[:1].expand(20_000, -1), batch.y[:1].expand(20_000))
    torch.manual_seed(0)
    z = posterior.sample((20_000,))
    one = torch.ones((), dtype=torch.float64)
    chains = annealing.AnnealedChains(model, rows, torch.stack([one, one]))
    mu, log_var = chains.posterior
    start = chains._evaluate((z - mu) * torch.exp(-0.5 * log_var))
    step = torch.full((20_000, 1), 0.2, dtype=torch.float64)
    end, accepted = chains._move(start, one, step, generator(1, "test"))
    moved = mu + torch.exp(0.5 * log_var) * end.u
    assert 0.3 < accepted.double().mean() < 0.999
    error = posterior.variance.sqrt() / math.sqrt(20_000)
    assert ((moved.mean(dim=0) - center).abs() < 4 * error).all()
    torch.testing.assert_close(moved.T.cov(), posterior.covariance_matrix, rtol=0.06, atol=0.002)


def test_the_images_may_be_computed_in_any_order():
    model = small_vae(image_shape=(3, 4))
    images = torch.randint(0, 256, (25, 12), generator=generator(5, "test")).byte()
    split = Split(images, torch.zeros(25), (3, 4))
    assert torch.equal(annealed_bounds(model, split, 1), annealed_bounds(model, split, 2))


def test_the_chains_of_a_conditional_model_have_all_labels():
    """The mean over labels of p(x|y): a decoder that ignores z, so every weight is p(x|y)."""
    model = small_vae(image_shape=(3, 4), num_classes=4).double()
    show_labels(model)
    x = torch.rand(2, 12, generator=generator(6, "test"), dtype=torch.float64)
    batch = Batch(x, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        for parameter in model.network.encoder[-1].parameters():
            parameter.zero_()
    outputs = torch.arange(4.0).double().view(4, 1).expand(4, 12)
    log_p = -torch.stack([model.likelihood.neg_log_prob(outputs, image) for image in x])
    found = chain_bounds(model, batch, range(2), generator(0, "test"), num_chains=8, num_steps=3)
    torch.testing.assert_close(found, math.log(4) - log_p.logsumexp(dim=1))


def test_every_image_has_its_own_chains(monkeypatch):
    monkeypatch.setattr(annealing, "CHUNK", 2)
    split = Split(torch.full((4, 12), 99, dtype=torch.uint8), torch.zeros(4), (3, 4))
    assert len(annealed_bounds(small_vae(image_shape=(3, 4)), split, 1).unique()) == 4


def test_step_sizes_adapt_in_chains_whose_weights_are_not_used(linear, monkeypatch):
    model, batch = linear
    betas = torch.linspace(0, 1, 101, dtype=torch.float64)
    _, sizes = annealing.AnnealedChains(model, batch, betas).log_weights(generator(0, "test"))
    assert sizes[-1].median() > 2 * annealing.FIRST_STEP
    calls = []
    original = annealing.AnnealedChains.log_weights

    def record(chains, noise, step_sizes=None):
        calls.append(step_sizes)
        return original(chains, noise, step_sizes)

    monkeypatch.setattr(annealing.AnnealedChains, "log_weights", record)
    chain_bounds(model, batch, range(8), generator(0, "test"), num_chains=3, num_steps=100)
    assert calls[0] is None and torch.equal(calls[1], sizes.repeat_interleave(3, dim=1))
