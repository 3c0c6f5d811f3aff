import numpy as np
import pytest
import torch

from pipeline.evaluation.latent_code import correct
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


def test_the_linear_probe_does_not_depend_on_the_scale_of_a_dimension():
    (train, train_labels), (test, labels) = codes(800, 1), codes(300, 2)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    plain = correct("probe_accuracy", train, train_labels, test, labels).mean().item()
    scaled = correct("probe_accuracy", train * scale, train_labels, test * scale, labels)
    assert scaled.mean().item() == pytest.approx(plain, abs=0.01)
