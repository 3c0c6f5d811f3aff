"""The Fréchet distance where it is known, and as others compute it; the rest against their definitions."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pipeline.evaluation import sample_quality
from pipeline.runtime.randomness import generator
from pipeline.evaluation.sample_quality import class_shares, frechet_distance, prdc, quality

ROOT = Path(__file__).parents[2]


def drawn(n: int, width: int, purpose: str, mean: float = 0.0) -> torch.Tensor:
    """Points whose dimensions depend on one another, different for each purpose."""
    draw = generator(0, f"test/{purpose}")
    mix = torch.randn(width, width, generator=draw)
    return mean + torch.randn(n, width, generator=draw) @ mix


def whitened(n: int, width: int) -> torch.Tensor:
    """Points with mean 0 and covariance I to float64's precision."""
    points = torch.randn(n, width, generator=generator(0, "test/white"), dtype=torch.float64)
    points -= points.mean(dim=0)
    return torch.linalg.qr(points).Q * (n - 1) ** 0.5


def test_the_distance_of_gaussians_with_diagonal_covariances_is_the_known_one():
    white, sigma_a, sigma_b = whitened(500, 3), torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 2.0, 0.1])
    shift = torch.tensor([1.0, -2.0, 0.0])
    expected = (shift.square().sum() + (sigma_a - sigma_b).square().sum()).item()
    assert frechet_distance(white * sigma_a, white * sigma_b + shift) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(400, 300), (400, 5), (6, 5)])
def test_the_distance_is_the_one_with_sqrtm(n, m):
    """And of sets of fewer points than dimensions, where a covariance lacks rank, as well as sqrtm can tell."""
    a, b = drawn(n, 8, "a").double(), drawn(m, 8, "b", mean=1.0).double()
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    common = scipy.linalg.sqrtm(cov_a @ cov_b).real.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + cov_a.trace() + cov_b.trace() - 2 * common
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_the_distance_is_torchmetrics_of_these_features():
    class Features(nn.Module):
        num_features = 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0, 0]

    metric = FrechetInceptionDistance(Features(), normalize=True, input_img_size=(1, 1, 8)).set_dtype(torch.float64)
    a, b = drawn(400, 8, "a"), drawn(300, 8, "b", mean=1.0)
    for points, real in ((a, True), (b, False)):
        metric.update(points.double().view(-1, 1, 1, 8), real=real)
    assert frechet_distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_equal_sets_are_at_no_distance_whatever_their_rank():
    for points in (drawn(500, 8, "a", mean=3.0), drawn(5, 8, "a"), torch.ones(10, 8), drawn(500, 1, "a")):
        assert 0 <= frechet_distance(points, points) < 1e-8
        assert 0 <= frechet_distance(points, points.flip(0)) < 1e-8


def test_a_dimension_that_never_varies_adds_only_its_mean():
    a, b = drawn(300, 4, "a"), drawn(300, 4, "b")
    wide = [torch.cat([points, torch.full((300, 1), value)], dim=1) for points, value in ((a, 1.0), (b, 3.0))]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b) + 4)


def plain_prdc(real: np.ndarray, fake: np.ndarray, k: int) -> list[float]:
    """The four as their papers define them, point by point."""
    reach_real = NearestNeighbors(n_neighbors=k + 1).fit(real).kneighbors(real)[0][:, k]
    reach_fake = NearestNeighbors(n_neighbors=k + 1).fit(fake).kneighbors(fake)[0][:, k]
    distances = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    return [
        float(np.mean([any(distances[i, j] <= reach_real[i] for i in range(len(real))) for j in range(len(fake))])),
        float(np.mean([any(distances[i, j] <= reach_fake[j] for j in range(len(fake))) for i in range(len(real))])),
        sum(distances[i, j] <= reach_real[i] for i in range(len(real)) for j in range(len(fake))) / (k * len(fake)),
        float(np.mean([distances[i].min() <= reach_real[i] for i in range(len(real))])),
    ]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_the_rest_are_what_their_definitions_say(k):
    real, fake = drawn(120, 4, "a"), drawn(90, 4, "b", mean=0.5)
    found = prdc(real, fake, k=k)
    assert list(found) == pytest.approx(plain_prdc(real.double().numpy(), fake.double().numpy(), k), abs=1e-12)
    assert all(0 < value < 1 for value in found), "something to tell apart"


def test_a_set_compared_with_itself_and_with_one_far_away():
    points = drawn(300, 6, "a")
    same = prdc(points, points.flip(0))
    assert same.precision == same.recall == same.coverage == 1
    assert same.density == pytest.approx(6 / 5)  # of k neighbors and the point itself, where each reaches k + 1 points
    assert list(prdc(points, points + 1000)) == [0, 0, 0, 0]


def test_points_that_repeat_reach_themselves():
    points = torch.ones(20, 3)
    assert prdc(points, points)._replace(density=0) == (1, 1, 0, 1)


def test_samples_that_leave_out_a_class_lack_recall_and_coverage_and_not_precision():
    centers = 50 * torch.eye(4)
    real, other = (
        torch.cat([drawn(100, 4, f"{name}/{i}") + center for i, center in enumerate(centers)]) for name in "ab"
    )
    whole, dropped = prdc(real, other), prdc(real, other[:200])
    assert dropped.recall < 0.6 * whole.recall and dropped.coverage < 0.6 * whole.coverage
    assert dropped.precision > 0.9 * whole.precision
    assert frechet_distance(real, other[:200]) > 10 * frechet_distance(real, other)


def test_chunks_change_nothing(monkeypatch):
    real, fake = drawn(120, 4, "a"), drawn(90, 4, "b", mean=0.5)
    whole = prdc(real, fake)
    for chunk in (1, 91, 1000):
        monkeypatch.setattr(sample_quality, "CHUNK", chunk)
        assert prdc(real, fake) == whole


def plain(real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far real points reach, and every distance to a fake one, pair by pair."""
    own, other = (torch.cdist(real, points, compute_mode="donot_use_mm_for_euclid_dist") for points in (real, fake))
    return own.sort(dim=1).values[:, 5], other


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("width", [1, 2, 64])
def test_what_a_matrix_product_leaves_out_changes_nothing(scale, shift, width):
    """Also far from the origin, where it cancels, and where distances are as long as the reach is."""
    for whole in (False, True):
        real, fake = (scale * drawn(n, width, name) + shift for n, name in ((300, "a"), (250, "b")))
        if whole:
            real, fake = real.round(), torch.cat([fake.round(), real.round()[:50]])
        (reach_real, distances), (reach_fake, _) = plain(real, fake), plain(fake, real)
        assert torch.equal(sample_quality._reach(real, 5), reach_real)
        reached = distances <= reach_real.unsqueeze(1)
        assert prdc(real, fake) == (
            int(reached.any(dim=0).sum()) / len(fake),
            int((distances <= reach_fake).any(dim=1).sum()) / len(real),
            int(reached.sum()) / (5 * len(fake)),
            int(reached.any(dim=1).sum()) / len(real),
        )


def test_the_figures_go_by_their_names():
    real, fake = drawn(120, 4, "a"), drawn(90, 4, "b")
    assert quality(real, fake) == {"fd_judge": frechet_distance(real, fake), **prdc(real, fake)._asdict()}


def test_the_bits_do_not_depend_on_the_number_of_threads():
    code = """if True:
        import torch
        from pipeline.evaluation.sample_quality import quality
        draw = torch.Generator().manual_seed(0)
        real, fake = torch.randn(2000, 64, generator=draw), 0.9 * torch.randn(2000, 64, generator=draw)
        print(quality(real, fake), torch.get_num_threads())
    """
    said = []
    for threads in (1, 2):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        result, _, used = shown.stdout.strip().rpartition(" ")
        assert used == str(threads)
        said.append(result)
    assert len(set(said)) == 1, said


def test_shares_of_classes():
    shares = class_shares(torch.tensor([0, 0, 3, 9]))
    assert shares.tolist() == [0.5, 0, 0, 0.25, 0, 0, 0, 0, 0, 0.25]
    with pytest.raises(ValueError, match="no classes"):
        class_shares(torch.tensor([], dtype=torch.int64))


def test_too_few_points_and_points_that_are_none_are_refused():
    few, many = drawn(1, 4, "a"), drawn(9, 4, "b")
    with pytest.raises(ValueError, match="two points or more"):
        frechet_distance(few, many)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(many, many / 0)
    for real, fake, k in ((many[:5], many, 5), (many, many[:5], 5), (many, many, 0)):
        with pytest.raises(ValueError, match="neighbors take at least"):
            prdc(real, fake, k=k)
