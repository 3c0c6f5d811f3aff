import torch
from conftest import read_idx_split

from pipeline.data.datasets import to_unit
from pipeline.evaluation.binarization import binarize, digest


def test_the_binarization_of_the_test_images_never_changes(mnist):
    """It is drawn from integers, so it is the same on any machine."""
    images, _ = read_idx_split(mnist, "test")
    expected = "ccf7f7f10fbe12fa3b3bb07bcd58106ea53513ae3275af0707329a85343d56a7"
    assert digest(binarize(images.flatten(1))) == expected


def test_a_pixel_is_white_with_the_probability_of_its_gray_value():
    values = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    shares = to_unit(binarize(values.expand(200_000, -1))).mean(dim=0)
    expected = values / 255
    errors = (expected * (1 - expected) / 200_000).sqrt()
    assert ((shares - expected).abs() <= 4 * errors).all()
    assert shares[0] == 0 and shares[-1] == 1
