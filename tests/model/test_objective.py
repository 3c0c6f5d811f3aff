"""The mathematics of the loss against closed forms and independent references, in float64."""

import numpy as np
import pytest
import torch
from helpers.models import small_vae
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal, kl_divergence

from pipeline.model.likelihood import Bernoulli
from pipeline.model.network import Batch
from pipeline.model.objective import elbo_terms, gaussian_kl

recon = Bernoulli().neg_log_prob


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


def uniform(*shape, rng):
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def normal(*shape, rng):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_kl_equals_torch_distributions(rng):
    mu, log_var = 2 * normal(64, 5, rng=rng), 1.5 * normal(64, 5, rng=rng)
    diagonal = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(gaussian_kl(mu, log_var), diagonal, rtol=1e-12, atol=1e-12)


def test_recon_is_the_log_probability_of_binary_images(rng):
    logits, x = normal(16, 784, rng=rng), (uniform(16, 784, rng=rng) > 0.5).double()
    expected = -TorchBernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(recon(logits, x), expected, rtol=1e-12, atol=1e-10)


def test_recon_of_gray_images_is_the_mean_over_their_binarizations(rng):
    """E_{b ~ Bern(x)}[−log p(b|z)], exactly: three pixels, their eight binarizations."""
    logits, x = normal(1, 3, rng=rng), uniform(1, 3, rng=rng)
    binary = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    probability = TorchBernoulli(probs=x).log_prob(binary).sum(-1).exp()
    expected = (probability * recon(logits.expand(8, 3), binary)).sum()
    torch.testing.assert_close(recon(logits, x)[0], expected)


@pytest.mark.parametrize("logit", [-1000.0, 1000.0])
def test_recon_of_extreme_logits_is_finite_and_exact(logit):
    logits = torch.full((1, 2), logit)
    assert recon(logits, torch.tensor([[0.0, 1.0]])).item() == 1000.0
    assert Bernoulli().mean(logits).isfinite().all()


def test_elbo_terms_equal_a_numpy_reference(rng):
    model = small_vae(image_shape=(3, 4), h_dim=7, z_dim=3, h_layers=2, activation="tanh").double()
    x, eps = uniform(5, 12, rng=rng), normal(5, 3, rng=rng)
    terms = elbo_terms(model, Batch(x), eps)

    arrays = [parameter.detach().numpy() for parameter in model.parameters()]

    def perceptron(h, arrays):
        for i in range(0, len(arrays), 2):
            h = h @ arrays[i].T + arrays[i + 1]
            h = np.tanh(h) if i + 2 < len(arrays) else h
        return h

    half = len(arrays) // 2
    mu, log_var = np.split(perceptron(x.numpy(), arrays[:half]), 2, axis=1)
    p = 1 / (1 + np.exp(-perceptron(mu + np.exp(log_var / 2) * eps.numpy(), arrays[half:])))
    expected_recon = -(x.numpy() * np.log(p) + (1 - x.numpy()) * np.log(1 - p)).sum(1)
    expected_kl = -0.5 * (1 + log_var - mu**2 - np.exp(log_var)).sum(1)
    np.testing.assert_allclose(terms.recon.detach(), expected_recon, rtol=1e-11)
    np.testing.assert_allclose(terms.kl.detach(), expected_kl, rtol=1e-11)
    np.testing.assert_allclose(terms.neg_elbo.detach(), expected_recon + expected_kl, rtol=1e-11)
