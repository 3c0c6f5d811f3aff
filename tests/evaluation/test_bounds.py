import math
import threading
import time

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from pipeline.evaluation import bounds as metrics
from pipeline.evaluation.binarization import LIMIT, binarize
from pipeline.evaluation.importance import noise
from pipeline.evaluation.bounds import Evidence, elbo, evidence, sample_sizes, summary
from pipeline.data.mnist import to_unit
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import PROTOCOL_SEED, generator, standard_normal


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
    monkeypatch.setitem(metrics.STEP, "cpu", 7)
    monkeypatch.setitem(metrics.ROWS, "cpu", 140)  # as many images of 20 draws
    for one, other in zip(gathered(evidence(model, images[:50], 20, 1.4)), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-4)


@pytest.fixture
def threads():
    """PyTorch's number of threads, put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("outside", [1, 4])
def test_the_evidence_has_the_same_bits_with_any_number_of_workers_and_threads(images, monkeypatch, threads, outside):
    """Of sizes whose products come out otherwise, shared by three threads or more."""
    wide = VAE(x_dim=784, h_dim=400, z_dim=20, h_layers=1, activation="relu")
    wide.reset_parameters(generator(0, "init"))
    monkeypatch.setitem(metrics.STEP, "cpu", 7)
    monkeypatch.setitem(metrics.ROWS, "cpu", 140)  # as many images of 20 draws
    threads(1)
    alone = gathered(evidence(wide, images[:50], 20, 1.4))
    threads(outside)
    for workers in (1, 2, 3, 20):
        found = gathered(evidence(wide, images[:50], 20, 1.4, lambda workers=workers: workers))
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
        assert torch.get_num_threads() == outside


def test_the_elbo_has_the_same_bits_with_any_number_of_threads(images, threads):
    wide = VAE(x_dim=784, h_dim=400, z_dim=20, h_layers=1, activation="relu")
    wide.reset_parameters(generator(0, "init"))
    found = []
    for number in (1, 2, 3, 4, 8):
        threads(number)
        found.append(elbo(wide, images))
    assert all(torch.equal(one, other) for some in found[1:] for one, other in zip(some, found[0], strict=True))


def test_as_many_records_are_computed_at_a_time_as_there_are_workers_each_on_one_thread(
    model, images, monkeypatch, threads
):
    """The number may change on the way; records come in the order of the images, and no gradient is kept."""
    lock, running, seen, settings = threading.Lock(), 0, [], set()
    real = metrics.prior_log_weights

    def counted(*args):
        nonlocal running
        with lock:
            running += 1
            seen.append(running)
            settings.add((torch.get_num_threads(), threading.current_thread() is threading.main_thread()))
        time.sleep(0.02)  # for others to begin
        found = real(*args)
        with lock:
            running -= 1
        return found

    monkeypatch.setattr(metrics, "prior_log_weights", counted)
    monkeypatch.setitem(metrics.STEP, "cpu", 2)
    monkeypatch.setitem(metrics.ROWS, "cpu", 5)  # a record of no more, for so few draws
    threads(4)
    most = 1
    records = evidence(model, images[:40], 5, 1.4, lambda: most)
    first = [next(records) for _ in range(3)]
    assert max(seen) == 1
    threads(4)  # what a thread that begins from here on would take over
    most = 3
    first += [next(records) for _ in range(7)]
    assert max(seen) == 3
    most = 1
    first += [next(records) for _ in range(5)]  # what was begun has ended by now
    seen.clear()
    found = gathered([*first, *records])
    assert set(seen) == {1} and settings == {(1, False)}
    assert not any(column.requires_grad for column in found)
    monkeypatch.setattr(metrics, "prior_log_weights", real)
    expected = gathered(evidence(model, images[:40], 5, 1.4))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_goes_wrong_in_a_worker_comes_out_and_ends_the_others(model, images, monkeypatch, threads):
    real = metrics.prior_log_weights

    def faulty(model, x, num_samples):
        if torch.equal(x, to_unit(images[6:8])):
            raise ZeroDivisionError("in the fourth record")
        return real(model, x, num_samples)

    monkeypatch.setattr(metrics, "prior_log_weights", faulty)
    monkeypatch.setitem(metrics.STEP, "cpu", 2)
    monkeypatch.setitem(metrics.ROWS, "cpu", 5)  # a record of no more, for so few draws
    threads(4)
    before, taken = threading.active_count(), []
    with pytest.raises(ZeroDivisionError, match="in the fourth record"):
        taken.extend(evidence(model, images[:40], 5, 1.4, lambda: 3))
    assert (threading.active_count(), torch.get_num_threads()) == (before, 4)


def test_who_stops_taking_records_leaves_nothing_behind(model, images, monkeypatch, threads):
    monkeypatch.setitem(metrics.STEP, "cpu", 2)
    monkeypatch.setitem(metrics.ROWS, "cpu", 5)  # a record of no more, for so few draws
    threads(4)
    before = threading.active_count()
    records = evidence(model, images[:40], 5, 1.4, lambda: 3)
    next(records)
    records.close()
    assert (threading.active_count(), torch.get_num_threads()) == (before, 4)
    assert list(evidence(model, images[:0], 5, 1.4)) == []


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
