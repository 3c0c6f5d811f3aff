"""What the latent code holds, where that is known, and against mixtures of torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pipeline.evaluation import posterior
from pipeline.model.objective import gaussian_kl
from pipeline.evaluation.posterior import active_units, affordable_draws, kl_per_dimension, kl_split
from pipeline.runtime.randomness import standard_normal


def drawn(n: int, z_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mu, log_var, eps = (standard_normal((n, z_dim), 0, f"test/{name}").double() for name in ("mu", "log_var", "eps"))
    return mu * torch.linspace(0, 2, z_dim), 0.5 * log_var - 1, eps


def test_a_collapsed_encoder_holds_nothing():
    mu, log_var, eps = torch.zeros(300, 4), torch.zeros(300, 4), standard_normal((300, 4), 0, "test")
    assert kl_per_dimension(mu, log_var).tolist() == [0] * 4
    assert not active_units(mu).any()
    for part in kl_split(mu, log_var, eps):
        assert part.abs().max() < 1e-5


def test_kl_per_dimension_adds_up_to_the_kl():
    mu, log_var, _ = drawn(200, 5)
    assert kl_per_dimension(mu, log_var).sum().item() == pytest.approx(gaussian_kl(mu, log_var).mean().item())


def test_a_unit_is_active_where_its_mean_varies():
    mu = torch.stack([torch.linspace(-1, 1, 100) * math.sqrt(variance * 3) for variance in (0.0, 0.0095, 0.0105)], 1)
    assert active_units(mu + 5).tolist() == [False, False, True]


def test_codes_that_tell_images_apart():
    """Far from one another, in two dimensions that are copies: each part of the KL but the last is log N."""
    n = 8
    mu = 100 * torch.arange(n, dtype=torch.float64).unsqueeze(1).expand(n, 2)
    split = kl_split(mu, torch.zeros_like(mu), standard_normal((n, 2), 0, "test").double())
    assert split.mutual_information.tolist() == pytest.approx([math.log(n)] * n)
    assert split.total_correlation.tolist() == pytest.approx([math.log(n)] * n)


def test_the_split_against_mixtures(monkeypatch):
    n, z_dim = 150, 3
    mu, log_var, eps = drawn(n, z_dim)
    monkeypatch.setattr(posterior, "CHUNK", 7 * n * z_dim)
    split = kl_split(mu, log_var, eps)
    z, each = mu + (0.5 * log_var).exp() * eps, Normal(mu, (0.5 * log_var).exp())
    uniform = Categorical(torch.ones(n, dtype=torch.float64))
    joint = MixtureSameFamily(uniform, Independent(each, 1)).log_prob(z)
    marginals = sum(
        MixtureSameFamily(uniform, Normal(mu[:, j], (0.5 * log_var[:, j]).exp())).log_prob(z[:, j])
        for j in range(z_dim)
    )
    conditional, prior = each.log_prob(z).sum(-1), Normal(0, 1).log_prob(z).sum(-1)
    torch.testing.assert_close(split.mutual_information, conditional - joint)
    torch.testing.assert_close(split.total_correlation, joint - marginals)
    torch.testing.assert_close(split.dimension_wise, marginals - prior)
    torch.testing.assert_close(sum(split), conditional - prior)
    # from every third image alone: the mixture is still of all
    fewer = kl_split(mu, log_var, eps[::3])
    torch.testing.assert_close(fewer.total_correlation, split.total_correlation[::3])


def test_in_float32_it_is_as_near_as_that_comes():
    """Also where one image lies far from all others, and the spreads differ by many times."""
    mu, log_var, eps = drawn(400, 6)
    mu[0], log_var[:, 1] = 50.0, torch.linspace(-8, 0, 400)
    exact, found = kl_split(mu, log_var, eps), kl_split(mu.float(), log_var.float(), eps.float())
    for one, other in zip(exact, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-4)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    values = [part.float() for part in drawn(2000, 3)]
    before, splits = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        splits.append(kl_split(*values))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*splits, strict=True))


def test_as_many_images_are_drawn_from_as_take_seconds():
    assert affordable_draws(10_000, 10) == 10_000 and affordable_draws(200, 4) == 200
    assert affordable_draws(10_000, 20) == 5_000 and affordable_draws(10_000, 1024) == 500
