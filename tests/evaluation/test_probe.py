import numpy as np
import pytest
import torch

from pipeline.evaluation.probe import knn_correct, linear_correct
from pipeline.runtime.randomness import generator


def codes(n: int, seed: int, z_dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten clusters that touch."""
    draw = generator(seed, "codes")
    centres = 2 * torch.randn(10, z_dim, generator=generator(0, "centres"))
    labels = torch.randint(0, 10, (n,), generator=draw)
    return centres[labels] + torch.randn(n, z_dim, generator=draw), labels.to(torch.uint8)


def test_the_nearest_15_vote():
    (train, train_labels), (test, labels) = codes(600, 1), codes(200, 2)
    correct = knn_correct(train, train_labels, test, labels)
    expected = []
    for point, label in zip(test.double(), labels, strict=True):
        nearest = (train.double() - point).square().sum(1).argsort()[:15]
        expected.append(float(np.bincount(train_labels[nearest], minlength=10).argmax() == label))
    assert correct.tolist() == expected and 0.3 < correct.mean() < 0.99


def test_a_line_tells_what_is_linear_and_no_more():
    draw = generator(3, "codes")
    z = torch.randn(3000, 2, generator=draw)
    halves, xor = (z[:, 0] > 0).byte(), ((z[:, 0] > 0) ^ (z[:, 1] > 0)).byte()
    assert linear_correct(z[:2000], halves[:2000], z[2000:], halves[2000:]).mean() > 0.98
    assert linear_correct(z[:2000], xor[:2000], z[2000:], xor[2000:]).mean() < 0.62
    assert knn_correct(z[:2000], xor[:2000], z[2000:], xor[2000:]).mean() > 0.9


def test_the_linear_probe_does_not_mind_the_scale_of_a_dimension():
    (train, train_labels), (test, labels) = codes(800, 1), codes(300, 2)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    plain = linear_correct(train, train_labels, test, labels).mean().item()
    assert linear_correct(train * scale, train_labels, test * scale, labels).mean().item() == pytest.approx(
        plain, abs=0.01
    )


def test_codes_that_hold_nothing_tell_nothing():
    _, train_labels = codes(600, 1)
    _, labels = codes(200, 2)
    for correct in (knn_correct, linear_correct):
        assert correct(torch.zeros(600, 2), train_labels, torch.zeros(200, 2), labels).mean() < 0.25
