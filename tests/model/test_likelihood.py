"""Densities of pixels, against quadrature and PyTorch's own distributions, in float64."""

import math

import pytest
import torch
from helpers.models import documented, small_vae
from scipy.integrate import quad
from torch.distributions import ContinuousBernoulli, Independent, Normal

from pipeline.model import likelihood as module
from pipeline.model.likelihood import LEBESGUE, LIKELIHOODS, ROUNDING
from pipeline.model.network import Batch
from pipeline.model.objective import elbo_terms
from pipeline.model.vae import load_vae, save_vae

# Logits, those of λ = ½ ± 1e-4 and of the border between series and closed form among them.
NEAR = math.log((0.5 + 1e-4) / (0.5 - 1e-4))
LOGITS = [0.0, NEAR, -NEAR, 0.0999999, -0.0999999, 0.1000001, -0.1000001, 1.0, -3.0, 40.0, -200.0]
SIGMAS = ["learned", "optimal", 0.3]
DENSITIES = [("continuous_bernoulli", "learned"), *(("gaussian", sigma) for sigma in SIGMAS)]


def likelihood(name: str, sigma: str | float = "learned"):
    chosen = small_vae(likelihood=name, sigma=sigma).likelihood.double().eval()
    return chosen.requires_grad_(False)


def integral(of, logit: float) -> float:
    """Of exp(−neg_log_prob) over one pixel, on [0, 1] or the real line."""
    outputs = torch.tensor([logit], dtype=torch.float64)
    low, high = (0, 1) if of.name == "continuous_bernoulli" else (-30, 30)
    # Where the density has its peak or kink.
    points = [of.mean(outputs).item(), 1e-2, 1 - 1e-2]

    def density(x: float) -> float:
        return math.exp(-of.neg_log_prob(outputs, torch.tensor([x], dtype=torch.float64)))

    return quad(density, low, high, points=points, limit=500, epsabs=1e-11)[0]


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize(("name", "sigma"), DENSITIES)
def test_each_density_integrates_to_one(name, sigma, logit):
    density = likelihood(name, sigma)
    assert density.measure == LEBESGUE and integral(density, logit) == pytest.approx(1, abs=1e-9)


def test_the_example_in_the_documents_is_a_density():
    names = documented(module)
    laplace = names["LIKELIHOODS"]["laplace"](small_vae().architecture)
    assert laplace.measure == LEBESGUE and {*LIKELIHOODS} < {*names["LIKELIHOODS"]}
    assert integral(laplace, 0.7) == pytest.approx(1, abs=1e-9)


def test_the_continuous_bernoulli_is_that_of_pytorch():
    ours, x = likelihood("continuous_bernoulli"), torch.rand(5, dtype=torch.float64)
    outputs = torch.tensor([-9.0, -2.0, 0.5, 3.0, 11.0], dtype=torch.float64)
    theirs = ContinuousBernoulli(logits=outputs)
    torch.testing.assert_close(ours.neg_log_prob(outputs, x), -theirs.log_prob(x).sum())
    torch.testing.assert_close(ours.mean(outputs), theirs.mean)
    assert not torch.allclose(ours.mean(outputs), theirs.probs, atol=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_mean_and_gradient_are_exact_and_finite_for_any_logit(dtype, tolerance):
    """The gradient of log p(x) by l is x − E[x], from the density alone."""
    ours = likelihood("continuous_bernoulli")
    outputs = torch.tensor([*LOGITS, 1e-8, 1e-30, 1e4, -1e4, 1e30, -1e30], dtype=dtype)
    outputs.requires_grad_()
    x = torch.linspace(0, 1, len(outputs), dtype=dtype)
    (gradient,) = torch.autograd.grad(ours.neg_log_prob(outputs, x), outputs)
    means = ours.mean(outputs)
    torch.testing.assert_close(gradient, means - x, rtol=0, atol=tolerance)
    # E[x] = ½ (1 + coth ½l − 2 / l), whose error is about that of float64 over l.
    far = outputs.detach().double()[3:]
    expected = 0.5 + 0.5 / torch.tanh(far / 2) - 1 / far
    kept = far.abs() > 0.01
    torch.testing.assert_close(means[3:].double()[kept], expected[kept], rtol=0, atol=tolerance)
    assert means[:3].tolist() == pytest.approx([0.5, 0.5 + NEAR / 12, 0.5 - NEAR / 12], abs=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_gaussian_is_that_of_pytorch(sigma):
    ours = likelihood("gaussian", sigma)
    outputs, x = torch.randn(2, 3, 5, dtype=torch.float64), torch.rand(2, 1, 5).double()
    scale = 0.3 if sigma == 0.3 else 12**-0.5  # before any training
    theirs = Independent(Normal(outputs.sigmoid(), scale), 1)
    torch.testing.assert_close(ours.neg_log_prob(outputs, x), -theirs.log_prob(x).double())


def test_the_optimal_variance_is_the_mean_squared_error():
    """No other σ gives a batch a higher likelihood, and the gradient is that with this σ fixed."""
    optimal = likelihood("gaussian", "optimal").train()
    outputs = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    x = torch.rand(4, 1, 6, dtype=torch.float64)
    loss = optimal.neg_log_prob(outputs, x).sum()
    mse = (outputs.sigmoid() - x).square().mean()
    fixed = likelihood("gaussian", mse.sqrt().item()).neg_log_prob(outputs, x).sum()
    torch.testing.assert_close(loss, fixed)
    for factor in (0.99, 1.01):
        other = likelihood("gaussian", factor * mse.sqrt().item())
        assert other.neg_log_prob(outputs, x).sum() > loss
    # The loss as a function of the outputs alone, with σ² as one of them.
    whole = 0.5 * outputs.numel() * (torch.log(2 * math.pi * mse) + 1)
    gradient, expected = (torch.autograd.grad(each, outputs)[0] for each in (loss, whole))
    torch.testing.assert_close(gradient, expected)


def test_evaluation_uses_the_average_of_the_batches(tmp_path):
    model = small_vae(likelihood="gaussian", sigma="optimal")
    x, logits = torch.rand(3, 784), torch.zeros(3, 784)
    for factor in (1.0, 0.5):
        model.likelihood.train().neg_log_prob(logits, 0.5 + factor * (x - 0.5))
    mse = (x - 0.5).square().mean() * (0.95 + 0.25) / 1.95
    save_vae(model, tmp_path / "vae.safetensors", {})
    fixed = small_vae(likelihood="gaussian", sigma=mse.sqrt().item()).likelihood
    loaded = load_vae(tmp_path / "vae.safetensors").likelihood
    torch.testing.assert_close(loaded.neg_log_prob(logits, x), fixed.neg_log_prob(logits, x))


def test_a_learned_sigma_can_rise_from_its_lowest_value():
    ours = small_vae(likelihood="gaussian").likelihood
    torch.nn.init.constant_(ours.log_sigma, -8)
    ours.neg_log_prob(torch.zeros(1, 784), torch.rand(1, 784)).sum().backward()
    assert ours.log_sigma.grad < 0


@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_equal_images_end_at_the_rounding_error_of_gray_values(sigma):
    model = small_vae(likelihood="gaussian", sigma=sigma, image_shape=(2, 2)).train()
    if sigma == "learned":
        torch.nn.init.constant_(model.likelihood.log_sigma, -100)
    torch.nn.init.constant_(model.network.decoder[-1].bias, -1000)
    batch = Batch(torch.zeros(3, 4))
    recon = elbo_terms(model, batch, torch.randn(3, 1, 4)).recon
    assert recon.tolist() == pytest.approx([2 * math.log(2 * math.pi * ROUNDING)] * 3)
