"""Priors against torch.distributions, and the samples that they give, in float64."""

import copy
import math

import pytest
import torch
from helpers.models import small_vae
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from pipeline.model.network import Batch, Posterior
from pipeline.model.prior import Mixture, StandardNormal
from pipeline.runtime.randomness import generator

K, Z = 5, 3


def normal(*shape: int, purpose: str) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, f"test/{purpose}"), dtype=torch.float64)


@pytest.fixture
def mixture() -> Mixture:
    log_weights = normal(K, purpose="weights").log_softmax(dim=0)
    return Mixture(
        log_weights, Posterior(2 * normal(K, Z, purpose="mu"), normal(K, Z, purpose="v"))
    )


def by_torch(mixture: Mixture) -> MixtureSameFamily:
    components = Normal(mixture.mu, (0.5 * mixture.log_var).exp())
    return MixtureSameFamily(Categorical(logits=mixture.log_weights), Independent(components, 1))


def test_log_prob_equals_torch_distributions(mixture):
    z = normal(7, 11, Z, purpose="z")
    torch.testing.assert_close(mixture.log_prob(z), by_torch(mixture).log_prob(z))
    torch.testing.assert_close(StandardNormal().log_prob(z), Normal(0, 1).log_prob(z).sum(-1))


@pytest.mark.parametrize("densities", [1, 4 * K])
def test_log_prob_is_computed_in_parts_that_fit_in_memory(mixture, monkeypatch, densities):
    z = normal(7, 11, Z, purpose="z")
    expected = mixture.log_prob(z)
    monkeypatch.setattr("pipeline.model.prior.DENSITIES", densities)
    torch.testing.assert_close(mixture.log_prob(z), expected)


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_log_ratio_is_log_p_minus_log_q(mixture, scale):
    mu, log_var, eps = (normal(7, 11, Z, purpose=name) for name in "mve")
    sigma = scale * (0.5 * log_var).exp()
    z = mu + sigma * eps
    log_q = Normal(mu, sigma).log_prob(z).sum(-1)
    for prior in (mixture, StandardNormal()):
        expected = prior.log_prob(z) - log_q
        torch.testing.assert_close(prior.log_ratio(z, log_var, eps, scale), expected)


def test_the_kl_of_a_mixture_is_that_of_torch_in_the_mean(mixture):
    """With one component there is a closed form; each estimate within 4 standard errors."""
    one = Mixture(torch.zeros(1), Posterior(mixture.mu[:1], mixture.log_var[:1]))
    posterior = Posterior(normal(2, Z, purpose="mu"), normal(2, Z, purpose="v"))
    eps = normal(2, 20_000, Z, purpose="e")
    sigma = (0.5 * posterior.log_var).exp()
    z = posterior.mu.unsqueeze(1) + sigma.unsqueeze(1) * eps
    prior = Normal(one.mu, (0.5 * one.log_var).exp())
    expected = kl_divergence(Normal(posterior.mu, sigma), prior)
    draws = -one.log_ratio(z, posterior.log_var.unsqueeze(1), eps)
    errors = draws.std(dim=1) / math.sqrt(20_000)
    assert ((one.kl(posterior, z, eps) - expected.sum(-1)).abs() < 4 * errors).all()
    own = Posterior(*(part[:1].expand(20_000, -1) for part in posterior))
    each = one.kl_per_dimension(own, z[0], eps[0])
    assert ((each.mean(dim=0) - expected[0]).abs() < 4 * each.std(dim=0) / math.sqrt(20_000)).all()


def test_the_dimensions_of_a_mixture_are_mixtures(mixture):
    posterior = Posterior(normal(9, Z, purpose="mu"), normal(9, Z, purpose="v"))
    eps = normal(9, Z, purpose="e")
    sigma = (0.5 * posterior.log_var).exp()
    z = posterior.mu + sigma * eps
    expected = Normal(posterior.mu, sigma).log_prob(z)
    for j in range(Z):
        components = Normal(mixture.mu[:, j], (0.5 * mixture.log_var[:, j]).exp())
        marginal = MixtureSameFamily(Categorical(logits=mixture.log_weights), components)
        expected[:, j] -= marginal.log_prob(z[:, j])
    torch.testing.assert_close(mixture.kl_per_dimension(posterior, z, eps), expected)


def test_samples_have_the_moments_of_the_mixture(mixture):
    n = 200_000
    u = torch.rand(n, generator=generator(0, "test/u"), dtype=torch.float64)
    z = mixture.sample(normal(n, Z, purpose="e"), u)
    expected = by_torch(mixture)
    errors = expected.variance.sqrt() / math.sqrt(n)
    assert ((z.mean(dim=0) - expected.mean).abs() < 4 * errors).all()
    torch.testing.assert_close(z.var(dim=0), expected.variance, rtol=0.02, atol=0)


def test_a_mixture_prior_is_that_of_its_weights():
    model = small_vae(prior="mixture", prior_components=K).double()
    prior, z = model.prior.requires_grad_(False), normal(6, 4, purpose="z")
    for name, parameter in prior.named_parameters():
        parameter.copy_(normal(*parameter.shape, purpose=name))
    expected = by_torch(Mixture(prior.logits, Posterior(prior.mu, prior.log_var)))
    torch.testing.assert_close(model.p_z().log_prob(z), expected.log_prob(z))


def test_in_bfloat16_a_mixture_is_computed_as_in_float32():
    working = small_vae(prior="mixture").bfloat16()
    rounded = copy.deepcopy(working).float()
    z = normal(6, 4, purpose="z").float()
    torch.testing.assert_close(working.p_z().log_prob(z), rounded.p_z().log_prob(z))


def test_a_vamp_prior_is_the_mean_of_the_encoders_gaussians():
    model = small_vae(prior="vamp", prior_components=K).double()
    q = model.encode(Batch(torch.sigmoid(model.prior.logits)))
    z = normal(6, 4, purpose="z")
    each = Normal(q.mu, (0.5 * q.log_var).exp()).log_prob(z.unsqueeze(1)).sum(-1).exp()
    torch.testing.assert_close(model.p_z().log_prob(z), each.mean(dim=1).log())


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_prior_with_weights_is_initialized_from_the_seed_and_saved(prior):
    first, second = (small_vae(seed, prior=prior).state_dict() for seed in (0, 1))
    names = [name for name in first if name.startswith("prior.")]
    assert names and any(not torch.equal(first[name], second[name]) for name in names)
    assert all(torch.equal(value, small_vae(0, prior=prior).state_dict()[name])
               for name, value in first.items())  # fmt: skip
