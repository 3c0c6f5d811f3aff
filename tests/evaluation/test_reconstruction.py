import math

import pytest
import torch
from helpers.models import small_vae

from pipeline.data.datasets import to_unit
from pipeline.evaluation.reconstruction import (
    FAST,
    LIMIT,
    bernoulli,
    bernoulli_clamped,
    choose,
    definition,
)
from pipeline.model.likelihood import Bernoulli
from pipeline.model.network import Batch
from pipeline.runtime.randomness import generator

EXACT = definition(small_vae().likelihood)


@pytest.fixture
def batch(small_test):
    return Batch(to_unit(small_test.images[:10]), small_test.labels[:10].long())


@pytest.mark.parametrize("width", [1, 5, 12, 196, 784])
def test_the_fast_version_equals_the_definition(width):
    draw = generator(3, "test")
    logits = 20 * torch.randn(4, 6, width, generator=draw, dtype=torch.float64)
    x = torch.rand(4, width, generator=draw, dtype=torch.float64)
    expected = EXACT.gray(logits, x)
    torch.testing.assert_close(bernoulli(logits, x), expected, rtol=1e-12, atol=1e-10)
    in_float32 = bernoulli(logits.float(), x.float()).double()
    torch.testing.assert_close(in_float32, expected, rtol=2e-6, atol=1e-4)
    b = x.round()
    torch.testing.assert_close(bernoulli_clamped(logits, b), EXACT.binary(logits, b))
    shared = logits[:1]
    torch.testing.assert_close(bernoulli(shared, x), EXACT.gray(shared, x))


@pytest.mark.parametrize("recon", [EXACT.binary, bernoulli_clamped])
def test_a_certain_decoder_pays_at_most_the_limit(recon):
    logits = torch.full((1, 500, 784), -1000.0)
    wrong, right = recon(logits, torch.ones(1, 784)), recon(logits, torch.zeros(1, 784))
    assert wrong[0].tolist() == pytest.approx([-784 * math.log(LIMIT)] * 500, rel=1e-4)
    # In float32 the rounding errors of hundreds of equal logits would all have one sign.
    assert right[0].tolist() == pytest.approx([-784 * math.log1p(-LIMIT)] * 500, abs=1e-4)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-1000.0, 1000.0]).repeat(392).expand(1, 3, -1)
    x = torch.tensor([0.0, 1.0]).repeat(392).unsqueeze(0)
    assert bernoulli(logits, x).tolist() == [[0.0] * 3]
    assert bernoulli(logits, 1 - x).tolist() == [[784_000.0] * 3]


def test_the_fast_version_is_used_if_it_agrees(batch, capsys):
    assert choose(small_vae(), batch) is FAST["bernoulli"]
    assert capsys.readouterr().err == ""


def test_an_edited_likelihood_is_used_and_reported(batch, capsys):
    """The loss that was trained is the loss that is evaluated."""

    class Edited(Bernoulli):
        def neg_log_prob(self, outputs, x):
            return 1.01 * super().neg_log_prob(outputs, x)

    model = small_vae()
    model.likelihood = edited = Edited(model.architecture)
    recons = choose(model, batch)
    logits, x = torch.randn(10, 3, 784), batch.x
    assert torch.equal(recons.gray(logits, x), edited.neg_log_prob(logits, x.unsqueeze(1)))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_edited_mean_is_that_of_the_binarized_images(batch):
    class Edited(Bernoulli):
        def mean(self, outputs):
            return super().mean(outputs).square()

    model = small_vae()
    model.likelihood = Edited(model.architecture)
    logits, b = torch.zeros(1, 1, 784), torch.ones(1, 784)
    assert choose(model, batch).binary(logits, b).item() == pytest.approx(-784 * math.log(0.25))
