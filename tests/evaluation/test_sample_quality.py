import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.evaluation import sample_quality
from pipeline.evaluation.sample_quality import frechet_distance, prdc
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
def test_prdc_equals_its_definition(monkeypatch, k, width, scale, shift):
    """In chunks, far from the origin, for equal sets, and if distances are as long as the radii."""
    monkeypatch.setattr(sample_quality, "CHUNK", 50)
    a, b = points(120, width, "a"), points(90, width, "b", mean=0.5)
    rounded = a.round(), torch.cat([b.round(), a.round()[:20]])
    constant = torch.full((20, width), 0.1)
    for pair in ((a, b), rounded, (a, a.flip(0)), (constant, constant)):
        real, fake = (scale * values + shift for values in pair)
        expected = plain_prdc(real.double().numpy(), fake.double().numpy(), k)
        assert prdc(real, fake, k) == pytest.approx(expected, abs=1e-12)
