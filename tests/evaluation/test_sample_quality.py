import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pipeline.evaluation import sample_quality
from pipeline.evaluation.sample_quality import frechet_distance, prdc, quality
from pipeline.runtime.randomness import generator


def points(n: int, width: int, purpose: str, mean: float = 0.0) -> torch.Tensor:
    """Points with correlated dimensions, different for each purpose."""
    draw = generator(0, f"test/{purpose}")
    mix = torch.randn(width, width, generator=draw)
    return mean + torch.randn(n, width, generator=draw) @ mix


@pytest.mark.parametrize(("n", "m"), [(400, 300), (400, 5), (6, 5)])
def test_the_distance_equals_the_one_by_sqrtm(n, m):
    """Also for fewer points than dimensions, whose covariance lacks rank."""
    a, b = points(n, 8, "a").double(), points(m, 8, "b", mean=1.0).double()
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    common = scipy.linalg.sqrtm(cov_a @ cov_b).real.trace()
    between = (a.mean(0) - b.mean(0)).square().sum().item()
    expected = between + cov_a.trace() + cov_b.trace() - 2 * common
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_distance_equals_that_of_torchmetrics():
    class Features(nn.Module):
        num_features = 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0, 0]

    metric = FrechetInceptionDistance(Features(), normalize=True, input_img_size=(1, 1, 8))
    metric.set_dtype(torch.float64)
    a, b = points(400, 8, "a"), points(300, 8, "b", mean=1.0)
    metric.update(a.double().view(-1, 1, 1, 8), real=True)
    metric.update(b.double().view(-1, 1, 1, 8), real=False)
    assert frechet_distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_equal_sets_have_no_distance():
    for a in (points(500, 8, "a", 3.0), points(5, 8, "a"), torch.ones(9, 8), points(500, 1, "a")):
        assert 0 <= frechet_distance(a, a.flip(0)) < 1e-8


def plain_prdc(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, with exact distances."""
    distances = np.linalg.norm(real[:, None] - fake[None], axis=2)
    radii_real = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2))[:, k]
    radii_fake = np.sort(np.linalg.norm(fake[:, None] - fake[None], axis=2))[:, k]
    inside = distances <= radii_real[:, None]
    return {
        "precision": inside.any(axis=0).mean(),
        "recall": (distances <= radii_fake).any(axis=1).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(axis=1).mean(),
    }


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("width", [1, 4, 64])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.5), (1e-3, 100.0), (1e3, 0.0)])
def test_prdc_equals_its_definition(k, width, scale, shift):
    """Also far from the origin, and if distances are as long as the radii."""
    a, b = points(120, width, "a"), points(90, width, "b", mean=0.5)
    rounded = a.round(), torch.cat([b.round(), a.round()[:20]])
    for pair in ((a, b), rounded):
        real, fake = (scale * values + shift for values in pair)
        expected = plain_prdc(real.double().numpy(), fake.double().numpy(), k)
        assert prdc(real, fake, k) == pytest.approx(expected, abs=1e-12)


def test_a_set_compared_with_itself_and_with_one_far_away():
    a = points(300, 6, "a")
    same = prdc(a, a.flip(0))
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert same["density"] == pytest.approx(6 / 5)  # k neighbors and the point itself
    assert set(prdc(a, a + 1000).values()) == {0}


def test_equal_points_are_in_their_own_balls():
    a = 0.1 * torch.ones(20, 3)
    assert prdc(a, a) == {"precision": 1, "recall": 1, "density": 4, "coverage": 1}


def test_missing_classes_cost_recall_and_coverage_but_not_precision():
    centers = 50 * torch.eye(4)
    real, fake = (
        torch.cat([points(100, 4, f"{name}/{i}") + center for i, center in enumerate(centers)])
        for name in "ab"
    )
    whole, half = prdc(real, fake), prdc(real, fake[:200])
    assert half["recall"] < 0.6 * whole["recall"] and half["coverage"] < 0.6 * whole["coverage"]
    assert half["precision"] > 0.9 * whole["precision"]
    assert frechet_distance(real, fake[:200]) > 10 * frechet_distance(real, fake)


@pytest.mark.parametrize("chunk", [1, 91, 1000])
def test_chunks_change_nothing(monkeypatch, chunk):
    real, fake = points(120, 4, "a"), points(90, 4, "b", mean=0.5)
    whole = prdc(real, fake)
    monkeypatch.setattr(sample_quality, "CHUNK", chunk)
    assert prdc(real, fake) == whole


def test_the_bits_do_not_depend_on_the_number_of_threads(set_threads):
    a, b = points(2000, 64, "a"), points(2000, 64, "b")
    set_threads(1)
    expected = quality(a, b)
    for threads in (2, 3, 4):
        set_threads(threads)
        assert quality(a, b) == expected
