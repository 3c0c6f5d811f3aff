"""The mathematics against closed forms and independent references, in float64."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

from pipeline.model.likelihood import bernoulli_mean, bernoulli_recon
from pipeline.model.vae import VAE, reparameterize
from pipeline.model.objective import elbo_terms, gaussian_kl


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


def posterior(rng, n=64, z_dim=5):
    return (torch.randn(n, z_dim, generator=rng, dtype=torch.float64) * s for s in (2.0, 1.5))


def test_kl_equals_torch_distributions(rng):
    mu, log_var = posterior(rng)
    expected = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(gaussian_kl(mu, log_var), expected, rtol=1e-12, atol=1e-12)


def test_kl_equals_the_general_gaussian_formula(rng):
    mu, log_var = posterior(rng, n=8)
    eye = torch.eye(5, dtype=torch.float64)
    expected = kl_divergence(
        MultivariateNormal(mu, torch.diag_embed(log_var.exp())), MultivariateNormal(torch.zeros_like(mu), eye)
    )
    torch.testing.assert_close(gaussian_kl(mu, log_var), expected, rtol=1e-10, atol=1e-10)


def test_kl_of_the_prior_is_zero_and_of_anything_else_positive(rng):
    assert torch.equal(gaussian_kl(torch.zeros(3, 4), torch.zeros(3, 4)), torch.zeros(3))
    assert (gaussian_kl(*posterior(rng)) > 0).all()


def test_recon_is_the_log_probability_of_binary_images(rng):
    logits = torch.randn(16, 784, generator=rng, dtype=torch.float64)
    x = (torch.rand(16, 784, generator=rng) > 0.5).double()
    expected = -Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(bernoulli_recon(logits, x), expected, rtol=1e-12, atol=1e-10)


def test_recon_of_grey_images_is_the_mean_over_their_binarizations(rng):
    """E_{b ~ Bern(x)}[−log p(b|z)] = BCE(x, p), exactly: three pixels, all eight binarizations weighed by x."""
    logits, x = torch.randn(1, 3, generator=rng).double(), torch.rand(1, 3, generator=rng).double()
    binary = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    weight = Bernoulli(probs=x).log_prob(binary).sum(-1).exp()
    expected = (weight * bernoulli_recon(logits.expand(8, 3), binary)).sum()
    torch.testing.assert_close(bernoulli_recon(logits, x)[0], expected)


@pytest.mark.parametrize("logit", [-1000.0, 1000.0])
def test_recon_of_extreme_logits_is_finite_and_exact(logit):
    logits = torch.full((1, 2), logit)
    assert bernoulli_recon(logits, torch.tensor([[0.0, 1.0]])).item() == 1000.0
    assert bernoulli_mean(logits).isfinite().all()


def test_elbo_terms_equal_a_numpy_reference(rng):
    model = VAE(x_dim=12, h_dim=7, z_dim=3, h_layers=2, activation="tanh").double()
    x = torch.rand(5, 12, generator=rng, dtype=torch.float64)
    eps = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    terms = elbo_terms(model, x, eps)

    weights = [p.detach().numpy() for p in model.parameters()]

    def mlp(h, weights):
        for i in range(0, len(weights), 2):
            h = h @ weights[i].T + weights[i + 1]
            h = np.tanh(h) if i + 2 < len(weights) else h
        return h

    half = len(weights) // 2
    mu, log_var = np.split(mlp(x.numpy(), weights[:half]), 2, axis=1)
    p = 1 / (1 + np.exp(-mlp(mu + np.exp(log_var / 2) * eps.numpy(), weights[half:])))
    recon = -(x.numpy() * np.log(p) + (1 - x.numpy()) * np.log(1 - p)).sum(1)
    kl = -0.5 * (1 + log_var - mu**2 - np.exp(log_var)).sum(1)
    np.testing.assert_allclose(terms.recon.detach(), recon, rtol=1e-11)
    np.testing.assert_allclose(terms.kl.detach(), kl, rtol=1e-11)
    np.testing.assert_allclose(terms.neg_elbo.detach(), recon + kl, rtol=1e-11)


def test_loss_on_sigmoid_outputs_is_the_same_function(rng):
    """The usual way to write this loss applies BCE to probabilities; logits change the rounding alone."""
    logits, x = torch.randn(4, 784, generator=rng), torch.rand(4, 784, generator=rng)
    expected = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="none").sum(-1)
    torch.testing.assert_close(bernoulli_recon(logits, x), expected, rtol=1e-5, atol=1e-3)


def test_reparameterized_sample_has_the_right_distribution_and_gradients(rng):
    mu, log_var = torch.tensor([[0.7]]), torch.tensor([[-1.2]])
    z = reparameterize(mu, log_var, torch.randn(200_000, 1, generator=rng))
    assert z.mean().item() == pytest.approx(0.7, abs=0.01)
    assert z.var().item() == pytest.approx(np.exp(-1.2), rel=0.02)

    inputs = [torch.randn(4, 3, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2)]
    eps = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda mu, log_var: reparameterize(mu, log_var, eps), inputs)  # finite differences


def test_gradient_of_the_loss_equals_finite_differences(rng):
    model = VAE(x_dim=6, h_dim=4, z_dim=2, h_layers=1, activation="tanh").double()
    x = torch.rand(3, 6, generator=rng, dtype=torch.float64)
    eps = torch.randn(3, 2, generator=rng, dtype=torch.float64)

    def loss():
        return elbo_terms(model, x, eps).neg_elbo.sum()

    loss().backward()
    step = 1e-6
    for parameter in model.parameters():
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(0, len(flat), 3):
            flat[i] += step
            up = loss().item()
            flat[i] -= 2 * step
            down = loss().item()
            flat[i] += step
            assert grad[i].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-7)
