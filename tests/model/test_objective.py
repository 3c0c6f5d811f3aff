"""The mathematics of the loss against closed forms and independent references, in float64."""

import numpy as np
import pytest
import torch
from helpers.models import gradients, small_vae
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal, kl_divergence

from pipeline.model.network import Batch
from pipeline.model.objective import (
    NEG_ELBO,
    ElboTerms,
    Objective,
    draw,
    dreg_terms,
    elbo_terms,
    iwae_terms,
)
from pipeline.model.prior import StandardNormal, gaussian_kl

BERNOULLI = small_vae().likelihood
recon = BERNOULLI.neg_log_prob


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
    assert BERNOULLI.mean(logits).isfinite().all()


def test_elbo_terms_equal_a_numpy_reference(rng):
    model = small_vae(image_shape=(3, 4), h_dim=7, z_dim=3, h_layers=2, activation="tanh").double()
    x, eps = uniform(5, 12, rng=rng), normal(5, 3, rng=rng)
    terms = elbo_terms(model, Batch(x), eps.unsqueeze(1))

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


def gradient(model, terms):
    """The gradients of the loss as one vector."""
    model.zero_grad()
    terms.loss.sum().backward()
    return gradients(model).clone()


def model_and_batch(rng, **changes):
    model = small_vae(image_shape=(3, 4), h_dim=7, z_dim=3, activation="tanh", **changes).double()
    return model, Batch(uniform(5, 12, rng=rng))


@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp"])
def test_one_importance_weight_is_the_sampled_elbo(rng, prior):
    """KL estimated by log q(z|x) − log p(z) in place of the closed form; and their gradients."""
    model, batch = model_and_batch(rng, prior=prior)
    eps = normal(5, 1, 3, rng=rng)
    posterior, z = draw(model, batch, eps)
    q = Normal(posterior.mu, (0.5 * posterior.log_var).exp())
    kl = q.log_prob(z.squeeze(1)).sum(-1) - model.p_z().log_prob(z.squeeze(1))
    recon = recon_of(model, z, batch)
    expected = gradient(model, ElboTerms(recon, kl, loss=recon + kl))
    terms = iwae_terms(model, batch, eps)
    torch.testing.assert_close(terms.loss, recon + kl)
    torch.testing.assert_close(gradient(model, terms), expected)


def recon_of(model, z, batch):
    return model.likelihood.neg_log_prob(model.decode(z.squeeze(1)), batch.x)


def test_more_samples_are_the_mean_of_each(rng):
    model, batch = model_and_batch(rng)
    eps = normal(5, 4, 3, rng=rng)
    each = [elbo_terms(model, batch, eps[:, [s]]).neg_elbo for s in range(4)]
    torch.testing.assert_close(elbo_terms(model, batch, eps).neg_elbo, sum(each) / 4)


def test_the_bound_of_weights_is_tighter_and_equal_for_both_gradients(rng):
    model, batch = model_and_batch(rng)
    eps = normal(5, 50, 3, rng=rng)
    terms = iwae_terms(model, batch, eps)
    assert (terms.loss < elbo_terms(model, batch, eps).neg_elbo).all()
    torch.testing.assert_close(dreg_terms(model, batch, eps).loss, terms.loss)


@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp"])
def test_both_gradients_agree_in_expectation_and_dreg_varies_less(rng, prior):
    model, batch = model_and_batch(rng, prior=prior)
    pairs = []
    for _ in range(400):
        eps = normal(5, 4, 3, rng=rng)
        pairs.append([gradient(model, of(model, batch, eps)) for of in (iwae_terms, dreg_terms)])
    plain, dreg = (torch.stack(each) for each in zip(*pairs, strict=True))
    difference = plain - dreg
    error = difference.std(dim=0) / 400**0.5
    outside = (difference.mean(dim=0).abs() > 3 * error + 1e-12).double().mean()
    assert outside < 0.02  # 0.3 % of normal variables are outside of three standard errors
    encoder = slice(0, sum(each.numel() for each in model.network.encoder.parameters()))
    if prior == "normal":
        assert dreg[:, encoder].var(dim=0).sum() < plain[:, encoder].var(dim=0).sum()


def test_at_the_exact_posterior_dreg_has_no_variance_in_the_encoder(rng):
    """A decoder that ignores z: the posterior is the prior."""
    model, batch = model_and_batch(rng)
    with torch.no_grad():
        model.network.decoder[0].weight.zero_()
        for parameter in model.network.encoder[-1].parameters():
            parameter.zero_()
    found = gradient(model, dreg_terms(model, batch, normal(5, 4, 3, rng=rng)))
    encoder = sum(each.numel() for each in model.network.encoder.parameters())
    assert found[:encoder].abs().max() < 1e-12
    plain = gradient(model, iwae_terms(model, batch, normal(5, 4, 3, rng=rng)))
    assert plain[:encoder].abs().max() > 1e-3


@pytest.mark.parametrize("terms", [elbo_terms, iwae_terms, dreg_terms])
def test_a_conditional_model_pays_for_the_label(rng, terms):
    """Its joint density is p(x|z, y) p(z) / C, and the label of an image is that of all its z."""
    model, batch = model_and_batch(rng, num_classes=3)
    batch, eps = batch._replace(y=torch.tensor([0, 1, 2, 0, 1])), normal(5, 4, 3, rng=rng)
    posterior, z = draw(model, batch, eps)
    logits = torch.stack([model.network.decode(z[:, s], batch.y) for s in range(4)], dim=1)
    log_p = Normal(0, 1).log_prob(z).sum(-1) - recon(logits, batch.x.unsqueeze(1)) - np.log(3)
    q = Normal(posterior.mu, (0.5 * posterior.log_var).exp())
    log_weights = log_p - q.log_prob(z.transpose(0, 1)).transpose(0, 1).sum(-1)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(-1) + np.log(3)
    found = terms(model, batch, eps)
    if terms is elbo_terms:
        torch.testing.assert_close(found.kl, kl)
        torch.testing.assert_close(found.loss, recon(logits, batch.x.unsqueeze(1)).mean(1) + kl)
    else:
        torch.testing.assert_close(found.neg_elbo, -log_weights.mean(dim=1))
        torch.testing.assert_close(found.loss, -log_weights.exp().mean(dim=1).log())


def test_beta_and_free_bits_change_the_loss_alone(rng):
    model, batch = model_and_batch(rng)
    eps = normal(5, 1, 3, rng=rng)
    plain, weighted = elbo_terms(model, batch, eps), elbo_terms(model, batch, eps, 4.0)
    torch.testing.assert_close(weighted.loss, plain.recon + 4 * plain.kl)
    torch.testing.assert_close(weighted.neg_elbo, plain.neg_elbo)
    posterior, z = draw(model, batch, eps)
    mean = StandardNormal().kl_per_dimension(posterior, z, eps).mean(dim=0)
    floor = mean.median().item() + 1e-9  # two of three dimensions are below
    free = elbo_terms(model, batch, eps, free_bits=floor)
    torch.testing.assert_close((free.loss - free.recon).mean(), mean.clamp(min=floor).sum())


def test_the_weight_rises_in_the_warm_up_and_stays():
    objective = Objective(beta=2.0, warmup_epochs=4)
    assert [objective.kl_weight(epoch) for epoch in (1, 2, 5, 9)] == [0.4, 0.8, 2.0, 2.0]
    assert NEG_ELBO.kl_weight(1) == 1.0
