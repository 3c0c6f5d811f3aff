import numpy as np
import pytest
import torch

from pipeline.evaluation.probe import PROBES, correct
from pipeline.runtime.randomness import generator


def codes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten clusters that overlap."""
    draw = generator(seed, "codes")
    centers = 2 * torch.randn(10, 3, generator=generator(0, "centers"))
    labels = torch.randint(0, 10, (n,), generator=draw)
    return centers[labels] + torch.randn(n, 3, generator=draw), labels.to(torch.uint8)


def test_the_15_nearest_codes_vote():
    (train, train_labels), (test, labels) = codes(600, 1), codes(200, 2)
    hits = correct("knn_accuracy", train, train_labels, test, labels)
    expected = []
    for point, label in zip(test.double(), labels, strict=True):
        nearest = (train.double() - point).square().sum(1).argsort()[:15]
        votes = np.bincount(train_labels[nearest], minlength=10)
        expected.append(float(votes.argmax() == label))
    assert hits.tolist() == expected and 0.3 < hits.mean() < 0.99


def test_the_linear_probe_finds_what_is_linear_and_no_more():
    z = torch.randn(3000, 2, generator=generator(3, "codes"))
    half, xor = (z[:, 0] > 0).byte(), ((z[:, 0] > 0) ^ (z[:, 1] > 0)).byte()
    assert correct("probe_accuracy", z[:2000], half[:2000], z[2000:], half[2000:]).mean() > 0.98
    assert correct("probe_accuracy", z[:2000], xor[:2000], z[2000:], xor[2000:]).mean() < 0.62
    assert correct("knn_accuracy", z[:2000], xor[:2000], z[2000:], xor[2000:]).mean() > 0.9


def test_the_linear_probe_does_not_depend_on_the_scale_of_a_dimension():
    (train, train_labels), (test, labels) = codes(800, 1), codes(300, 2)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    plain = correct("probe_accuracy", train, train_labels, test, labels).mean().item()
    scaled = correct("probe_accuracy", train * scale, train_labels, test * scale, labels)
    assert scaled.mean().item() == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize("probe", PROBES)
def test_equal_codes_predict_nothing(probe):
    (_, train_labels), (_, labels) = codes(600, 1), codes(200, 2)
    hits = correct(probe, torch.zeros(600, 2), train_labels, torch.zeros(200, 2), labels)
    assert hits.mean() < 0.25
