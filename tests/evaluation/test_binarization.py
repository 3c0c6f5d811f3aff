import math

import pytest
import torch

from pipeline.evaluation.binarization import LIMIT, binarize, clamped_recon_of_draws, digest
from pipeline.model.likelihood import bernoulli_recon
from pipeline.data.mnist import load_images, to_unit
from pipeline.runtime.randomness import generator


def test_the_binarization_of_the_test_images_is_always_this_one(mnist):
    """From integers, and therefore on any machine; figures of nll_binarized compare only within one."""
    binary = binarize(load_images(mnist, "test"))
    assert digest(binary) == "ccf7f7f10fbe12fa3b3bb07bcd58106ea53513ae3275af0707329a85343d56a7"


def test_a_pixel_is_white_as_often_as_it_is_grey():
    values = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    shares = to_unit(binarize(values.expand(200_000, -1))).mean(dim=0)
    expected = values / 255
    errors = (expected * (1 - expected) / 200_000).sqrt()
    assert ((shares - expected).abs() <= 4 * errors).all()
    assert shares[0] == 0 and shares[-1] == 1


def test_it_bridges_to_the_cross_entropy_of_grey_values():
    """E_{b ~ Bern(x)}[−log p(b|z)] = BCE(x, p)."""
    x = torch.randint(0, 256, (1, 784), generator=generator(0, "x")).to(torch.uint8)
    logits = torch.randn(1, 1, 784, generator=generator(1, "l"))
    n = 4000
    b = to_unit(binarize(x.expand(n, -1)))
    found = clamped_recon_of_draws(logits.expand(n, -1, -1), b).squeeze(1).double()
    error = found.std().item() / math.sqrt(n)
    assert found.mean().item() == pytest.approx(bernoulli_recon(logits[0], to_unit(x)).item(), abs=4 * error)


def test_a_decoder_that_is_sure_and_wrong_pays_no_more_than_the_limit():
    logits, b = torch.full((1, 1, 10), 1000.0), torch.zeros(1, 10)
    assert clamped_recon_of_draws(logits, b).item() == pytest.approx(-10 * math.log(LIMIT), rel=1e-4)


def test_what_is_certain_for_all_pixels_alike_does_not_add_up_to_an_error():
    """In float32: a clamped black border is hundreds of equal logits, whose rounding errors would have one sign."""
    logits, b = torch.full((1, 500, 784), -1000.0), torch.zeros(1, 784)
    found = clamped_recon_of_draws(logits, b)
    assert found.flatten().tolist() == pytest.approx([-784 * math.log1p(-LIMIT)] * 500, abs=1e-4)
