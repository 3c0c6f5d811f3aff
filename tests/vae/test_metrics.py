import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from pipeline.vae import metrics
from pipeline.vae.binarization import LIMIT, binarize
from pipeline.vae.importance import noise
from pipeline.vae.metrics import Evidence, elbo, evidence, sample_sizes, summary
from pipeline.vae.mnist import to_unit
from pipeline.vae.model import VAE
from pipeline.vae.randomness import PROTOCOL_SEED, generator, standard_normal


@pytest.fixture(scope="module")
def model():
    model = VAE(x_dim=784, h_dim=32, z_dim=4, h_layers=1, activation="relu")
    model.reset_parameters(generator(0, "init"))
    return model


@pytest.fixture(scope="module")
def images(small_images):
    return torch.cat([small_images] * 3)[:1500]  # more than one batch


@torch.no_grad()
def reference(model, images, eps):
    x = to_unit(images)
    mu, log_var = model.encode(x)
    p = torch.sigmoid(model.decode(mu + eps * torch.exp(log_var / 2)))
    recon = F.binary_cross_entropy(p, x, reduction="none").sum(1)
    kl = kl_divergence(Normal(mu, torch.exp(log_var / 2)), Normal(0.0, 1.0)).sum(1)
    return {"recon": recon, "kl": kl, "mse": (p - x).square().mean(1)}


def gathered(records) -> Evidence:
    return Evidence(*(torch.cat(column) for column in zip(*records, strict=True)))


def test_the_elbo_equals_an_independent_computation(model, images):
    eps = standard_normal((len(images), 4), PROTOCOL_SEED, "evaluate")
    found = elbo(model, images)
    for name, expected in reference(model, images, eps).items():
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-5, atol=1e-5)


def test_z_is_sampled_not_set_to_its_mean(model, images):
    """At z = μ the reconstruction term is another number, too good once a model is trained."""
    at_the_mean = reference(model, images, torch.zeros(len(images), 4))
    assert (elbo(model, images).recon - at_the_mean["recon"]).abs().mean() > 1e-3


def test_measuring_twice_gives_the_same_bits(model, images):
    first = elbo(model, images)
    torch.manual_seed(123)
    assert all(torch.equal(one, other) for one, other in zip(elbo(model, images), first, strict=True))


def test_the_evidence_is_that_of_densities_by_torch(model, images):
    """Four images, weight by weight: p(x|z) p(z) / q(z), q widened or not, and the binarization under clamped means."""
    some, k, scale = images[:4], 30, 1.4
    found = gathered(evidence(model, some, k, scale))
    with torch.no_grad():
        for i, x in enumerate(to_unit(some)):
            for name, target, wide in (("widened", x, scale), ("plain", x, 1.0), ("binarized", None, scale)):
                target = to_unit(binarize(some))[i] if target is None else target
                mu, log_var = model.encode(target.unsqueeze(0))
                q = Normal(mu, wide * torch.exp(log_var / 2))
                z = mu + q.scale * noise(k, 4, i)
                p = torch.sigmoid(model.decode(z))
                p = p.clamp(LIMIT, 1 - LIMIT) if name == "binarized" else p
                log_p = -F.binary_cross_entropy(p, target.expand_as(p), reduction="none").sum(1)
                if name == "binarized":
                    torch.testing.assert_close(log_p, Bernoulli(p).log_prob(target).sum(1), rtol=1e-4, atol=1e-2)
                log_w = log_p + Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)
                expected = math.log(k) - log_w.logsumexp(0)
                value = getattr(found, name)[i]
                torch.testing.assert_close(value if name == "binarized" else value[-1], expected, rtol=1e-5, atol=1e-3)
                if name == "widened":
                    w = (log_w - log_w.max()).exp()
                    assert found.ess[i].item() == pytest.approx((w.sum() ** 2 / w.square().sum()).item(), rel=1e-3)


def test_an_image_has_the_same_evidence_in_any_chunk(model, images, monkeypatch):
    whole = gathered(evidence(model, images[:50], 20, 1.4))
    monkeypatch.setattr(metrics, "STEP", {"cpu": 7})
    for one, other in zip(gathered(evidence(model, images[:50], 20, 1.4)), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-4)


def test_without_widening_the_two_bounds_are_one(model, images):
    found = gathered(evidence(model, images[:5], 12, 1.0))
    assert torch.equal(found.widened, found.plain) and found.widened.shape == (5, 3)


def test_the_bounds_fall_with_k(model, images):
    found = gathered(evidence(model, images[:200], 100, 1.4))
    for bound in (found.widened, found.plain, found.prior):
        for few, many in zip(bound.T[:-1], bound.T[1:], strict=True):
            gain = (many - few).double()
            assert gain.mean() <= 3 * gain.std() / math.sqrt(len(gain))


def test_the_bound_is_read_at_powers_of_ten():
    assert sample_sizes(500) == [1, 10, 100, 500] and sample_sizes(100) == [1, 10, 100] and sample_sizes(1) == [1]


def test_a_mean_has_the_standard_error_of_a_mean():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert summary({"kl": values}) == {"kl": 3.0, "kl_se": pytest.approx(math.sqrt(7 / 3))}


def test_a_collapsed_encoder_has_a_kl_of_zero(model, images):
    """And then every draw is one from the prior: the plain bound at K = 1 is −ELBO, and no gap can close."""
    blind = VAE(x_dim=784, h_dim=32, z_dim=4, h_layers=1, activation="relu")
    blind.reset_parameters(generator(0, "init"))
    with torch.no_grad():
        blind.encoder[-1].weight.zero_()
        blind.encoder[-1].bias.zero_()
    found = elbo(blind, images[:20])
    assert found.kl.tolist() == [0] * 20 and found.mu.abs().max() == 0 and found.log_var.abs().max() == 0
