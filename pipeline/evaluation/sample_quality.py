"""Distances between samples and real images, in features of the classifier (classifier.py).

The Fréchet distance treats both sets as Gaussians; precision, recall, density and coverage compare
distances between neighbors. The features are not Inception's: the distance is no FID, and compares
only with distances in the same features between as many images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.runtime.device import one_thread

NEIGHBORS = 5
CHUNK = 1 << 21  # distances computed at a time
TOLERANCE = 1e-12  # of squared distances, relative to the largest squared norm: rounding


class PRDC(NamedTuple):
    """Shares from 0 to 1; only the density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def quality(real: Tensor, fake: Tensor) -> dict[str, float]:
    """frechet_distance and the metrics of `prdc`: features [N, F] of real images, [M, F] of samples."""
    return {"frechet_distance": frechet_distance(real, fake)} | prdc(real, fake)._asdict()


@one_thread()
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) for the moments of a [N, F] and b [M, F].

    (Dowson & Landau 1982; of features, Heusel et al. 2017, eq. 6.) The trace of (Σ_a Σ_b)^½ is the
    sum of the singular values of Σ_a^½ Σ_b^½, which are real and not negative even if a covariance
    lacks rank. Covariances are over N − 1 and M − 1.
    """
    a, b = a.double(), b.double()
    root_a, root_b = _root(a), _root(b)
    between = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    common = torch.linalg.svdvals(root_a @ root_b).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * common
    return max(0.0, float(between + spread))  # rounding may give less than 0 for equal sets


def _root(points: Tensor) -> Tensor:
    """Σ^½ [F, F], symmetric, of the covariance Σ of points [N, F]."""
    covariance = torch.atleast_2d(points.T.cov())
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


@one_thread()
def prdc(real: Tensor, fake: Tensor, k: int = NEIGHBORS) -> PRDC:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a point reaches to its k-th nearest neighbor in its own set. precision: share of
    fake points in a ball of a real point; recall: share of real points in a ball of a fake point;
    density: mean number of real balls around a fake point, over k; coverage: share of real points
    whose ball contains a fake point. Each set must have more than k points.
    """
    center = real.double().mean(dim=0)  # far from the origin, squared distances would cancel
    real, fake = real.double() - center, fake.double() - center
    tolerance = TOLERANCE * max(float(points.square().sum(dim=1).amax()) for points in (real, fake))
    reach_real = _squared_reach(real, k) + tolerance
    reach_fake = _squared_reach(fake, k) + tolerance
    balls = torch.zeros(len(fake), dtype=torch.int64)  # real balls around each fake point
    recalled, covered = 0, 0
    step = max(1, CHUNK // len(fake))
    for points, reach in zip(real.split(step), reach_real.split(step), strict=True):
        squares = _squared_distances(points, fake)
        in_real_ball = squares <= reach.unsqueeze(1)
        balls += in_real_ball.sum(dim=0)
        covered += int(in_real_ball.any(dim=1).sum())
        recalled += int((squares <= reach_fake).any(dim=1).sum())
    return PRDC(
        precision=int((balls > 0).sum()) / len(fake),
        recall=recalled / len(real),
        density=int(balls.sum()) / (k * len(fake)),
        coverage=covered / len(real),
    )


def _squared_reach(points: Tensor, k: int) -> Tensor:
    """The squared distance of each point to its k-th nearest neighbor, [N]."""
    step = max(1, CHUNK // len(points))
    squares = (_squared_distances(chunk, points) for chunk in points.split(step))
    # The nearest of all is the point itself.
    return torch.cat([rows.topk(k + 1, largest=False).values[:, k] for rows in squares])


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a|² + |b|² − 2 a·b, [A, B]: in float64, exact to 1e-14 of the squared norms."""
    norms_a, norms_b = a.square().sum(dim=1), b.square().sum(dim=1)
    return torch.addmm(norms_b, a, b.T, alpha=-2).add_(norms_a.unsqueeze(1))


def class_shares(classes: Tensor, num_classes: int) -> Tensor:
    """The share of each class among classes [N]: [num_classes], in float64."""
    return classes.bincount(minlength=num_classes).double() / len(classes)
