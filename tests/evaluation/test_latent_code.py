import math

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pipeline.evaluation import latent_code
from pipeline.evaluation.latent_code import (
    active_units,
    affordable_draws,
    kl_per_dimension,
    kl_split,
)
from pipeline.model.network import Posterior
from pipeline.model.prior import Mixture, StandardNormal
from pipeline.runtime.randomness import standard_normal


def random_posterior(n: int, z_dim: int) -> tuple[Posterior, torch.Tensor]:
    """A posterior and noise in float64."""
    mu, log_var, eps = (standard_normal((n, z_dim), 0, f"test/{name}").double() for name in "mve")
    return Posterior(mu * torch.linspace(0, 2, z_dim), 0.5 * log_var - 1), eps


def test_a_unit_is_active_if_its_mean_varies():
    steps = torch.linspace(-1, 1, 100)
    mu = torch.stack([steps * math.sqrt(3 * variance) for variance in (0.0, 0.0095, 0.0105)], 1)
    assert active_units(mu + 5).tolist() == [False, False, True]


def test_the_parts_equal_those_of_mixtures_by_torch(monkeypatch):
    n, z_dim = 150, 3
    posterior, eps = random_posterior(n, z_dim)
    mu, sigma = posterior.mu, (0.5 * posterior.log_var).exp()
    monkeypatch.setattr(latent_code, "CHUNK", 7 * n)
    parts = kl_split(posterior, StandardNormal(), eps)
    z, each = mu + sigma * eps, Normal(mu, sigma)
    uniform = Categorical(torch.ones(n, dtype=torch.float64))
    joint = MixtureSameFamily(uniform, Independent(each, 1)).log_prob(z)
    columns = [MixtureSameFamily(uniform, Normal(mu[:, j], sigma[:, j])) for j in range(z_dim)]
    marginals = sum(column.log_prob(z[:, j]) for j, column in enumerate(columns))
    conditional, prior = each.log_prob(z).sum(-1), Normal(0, 1).log_prob(z).sum(-1)
    torch.testing.assert_close(parts["mutual_information"], conditional - joint)
    torch.testing.assert_close(parts["total_correlation"], joint - marginals)
    torch.testing.assert_close(parts["dimension_wise_kl"], marginals - prior)
    # z of every third image: the mixture is still that of all images.
    third = kl_split(posterior, StandardNormal(), eps[::3])["total_correlation"]
    torch.testing.assert_close(third, parts["total_correlation"][::3])


def test_float32_is_precise_enough():
    """Also if one image is far from all others and the spreads differ by orders of magnitude."""
    posterior, eps = random_posterior(400, 6)
    posterior.mu[0], posterior.log_var[:, 1] = 50.0, torch.linspace(-8, 0, 400)
    exact = kl_split(posterior, StandardNormal(), eps)
    rounded = Posterior(*(part.float() for part in posterior))
    parts = kl_split(rounded, StandardNormal(), eps.float())
    for name, values in exact.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-5, atol=1e-4)


def test_the_number_of_draws_is_limited_by_time():
    assert affordable_draws(10_000, 5) == 10_000 and affordable_draws(200, 4) == 200
    assert affordable_draws(10_000, 20) == 2_500 and affordable_draws(10_000, 1024) == 500


def test_the_kl_of_a_dimension_of_a_mixture_is_measured_at_z():
    posterior, eps = random_posterior(50, 2)
    weights = torch.tensor([0.3, 0.7]).double()
    mu = torch.tensor([[-1.0, 0.0], [2.0, 1.0]]).double()
    prior = Mixture(weights.log(), Posterior(mu, torch.zeros_like(mu)))
    q = Normal(posterior.mu, (0.5 * posterior.log_var).exp())
    p = MixtureSameFamily(Categorical(weights.expand(2, 2)), Normal(mu.T, 1.0))
    z = q.mean + q.scale * eps
    expected = (q.log_prob(z) - p.log_prob(z)).mean(dim=0)
    torch.testing.assert_close(kl_per_dimension(posterior, prior, eps), expected)
