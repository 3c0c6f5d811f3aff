import math
import threading
from dataclasses import replace

import pytest
import torch
from helpers.models import small_vae
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from pipeline.data.datasets import Split, binarize, to_unit
from pipeline.evaluation import bounds
from pipeline.evaluation.bounds import elbo, in_order, nll_bounds, prior_bounds
from pipeline.evaluation.importance import draw_labels, noise
from pipeline.evaluation.reconstruction import FAST, LIMIT
from pipeline.model.network import Batch
from pipeline.model.objective import ElboTerms
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal

RECONS = FAST["bernoulli"]


@pytest.fixture(scope="module")
def model():
    return small_vae()


@pytest.fixture(scope="module")
def split(small_train) -> Split:
    """More than one batch."""
    images, labels = small_train.images.repeat(2, 1), small_train.labels.repeat(2)
    return replace(small_train, images=images, labels=labels)


def first(split: Split, n: int) -> Split:
    return replace(split, images=split.images[:n], labels=split.labels[:n])


def estimate(model, split, num_samples=20):
    return nll_bounds(model, split, RECONS, (num_samples, 1.4), 1)


@torch.no_grad()
def test_the_elbo_equals_an_independent_computation(model, split):
    x = to_unit(split.images)
    mu, log_var = model.encode(Batch(x))
    q = Normal(mu, torch.exp(log_var / 2))
    z = mu + q.scale * standard_normal((len(x), 4), PROTOCOL_SEED, "evaluate")
    p = torch.sigmoid(model.decode(z))
    recon = F.binary_cross_entropy(p, x, reduction="none").sum(1)
    kl, mse = kl_divergence(q, Normal(0.0, 1.0)).sum(1), (p - x).square().mean(1)
    terms, errors, _ = elbo(model, split)
    torch.testing.assert_close(terms.recon, recon, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(terms.kl, kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(errors, mse, rtol=1e-5, atol=1e-6)


def test_the_elbo_is_that_of_the_objective(model, split, monkeypatch):
    """Training, validation and test share one definition."""
    monkeypatch.setattr(bounds, "elbo_terms", lambda _, batch, eps: ElboTerms(batch.x, eps, eps))
    terms, _, _ = elbo(model, split)
    assert torch.equal(terms.recon, to_unit(split.images))
    assert torch.equal(terms.kl.squeeze(1), bounds.evaluation_noise(len(split.images), model.z_dim))


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize("num_classes", [0, 10])
@torch.no_grad()
def test_the_bounds_equal_those_of_torch_distributions(num_classes, is_binary, split):
    """Weight by weight: p(x|z) p(z) / q(z), with q widened or not, and for the binarization."""
    model, some, k = small_vae(num_classes=num_classes), first(split, 4), 30
    if is_binary:
        some = replace(some, images=binarize(some.images))
    y = draw_labels(small_vae(num_classes=10), Batch(to_unit(some.images)), k, range(4)).y
    result = estimate(model, some, k)
    for name, images, scale in (
        ("widened", some.images, 1.4),
        ("plain", some.images, 1.0),
        ("binarized", binarize(some.images), 1.4),
    ):
        x = to_unit(images)
        each = Batch(x.repeat_interleave(k, dim=0), y.flatten())
        mu, log_var = (part.unflatten(0, (4, k)) for part in model.encode(each))
        q = Normal(mu, scale * torch.exp(log_var / 2))
        z = mu + q.scale * noise(k, 4, range(4))
        p, x = torch.broadcast_tensors(torch.sigmoid(model.decode(z, y)), x.unsqueeze(1))
        log_p = -F.binary_cross_entropy(p, x, reduction="none").sum(-1)
        if name == "binarized":
            log_p = Bernoulli(p.clamp(LIMIT, 1 - LIMIT)).log_prob(x).sum(-1)
        log_w = log_p + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        value = getattr(result, name).view(4, -1)[:, -1]
        expected = math.log(k) - log_w.logsumexp(1)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-3)
        if name == "widened":
            w = log_w.softmax(1)
            torch.testing.assert_close(result.ess, 1 / w.square().sum(1), rtol=1e-3, atol=0)


def test_bounds_do_not_depend_on_chunks_or_other_images(model, split, monkeypatch):
    some = first(split, 50)
    whole, prior = estimate(model, some), prior_bounds(model, some, RECONS, 20)
    monkeypatch.setattr(bounds, "MAX_IMAGES", 7)
    for part, expected in zip(estimate(model, some), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=5e-4)
    few = prior_bounds(model, first(split, 9), RECONS, 20)
    torch.testing.assert_close(few, prior[:9], rtol=1e-6, atol=1e-4)


def test_an_error_in_a_job_ends_all_of_them(set_threads):
    def compute(start: int) -> float:
        return 1 / (3 - start)

    set_threads(4)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(in_order(compute, range(20), torch.device("cpu"), 3))
    jobs = in_order(compute, range(20), torch.device("cpu"), 3)
    next(jobs)
    jobs.close()
    assert (threading.active_count(), torch.get_num_threads()) == (before, 4)


@pytest.mark.parametrize("is_binary", [False, True])
def test_a_binarized_pixel_costs_no_more_than_the_limit(is_binary, split):
    model, some = small_vae(), first(split, 4)
    if is_binary:
        some = replace(some, images=binarize(some.images))
    with torch.no_grad():
        model.network.decoder[-1].weight *= 1000
    result = estimate(model, some)
    assert result.binarized.max() < -784 * math.log(LIMIT) < result.widened[:, -1].max()
