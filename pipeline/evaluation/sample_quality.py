"""Distances between samples and real images, in features of the classifier (classifier.py).

The Fréchet distance treats both sets as Gaussians; precision, recall, density and coverage compare
distances between neighbors. The features are not Inception's: the distance is no FID, and compares
only with distances in the same features between as many images.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.runtime.device import one_thread

NEIGHBORS = 5
CHUNK = 200  # points whose distances are computed at a time
TOLERANCE = 1e-12  # rounding of squared distances, relative to the largest squared norm


def quality(real: Tensor, fake: Tensor) -> dict[str, float]:
    """frechet_distance and the metrics of `prdc`: features [N, F] of images, [M, F] of samples."""
    return {"frechet_distance": frechet_distance(real, fake)} | prdc(real, fake)


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
    values, vectors = torch.linalg.eigh(torch.atleast_2d(points.T.cov()))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@one_thread()
def prdc(real: Tensor, fake: Tensor, k: int = NEIGHBORS) -> dict[str, float]:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a point reaches to its k-th nearest neighbor in its own set. precision: share of
    fake points in a ball of a real point; recall: share of real points in a ball of a fake point;
    density: mean number of real balls around a fake point, over k; coverage: share of real points
    whose ball contains a fake point. Each set must have more than k points.
    """
    center = real.double().mean(dim=0)  # far from the origin, squared distances would cancel
    real, fake = real.double() - center, fake.double() - center
    largest = torch.cat([real, fake]).square().sum(dim=1).amax()
    squared_radii = _squared_radii(real, k) + TOLERANCE * largest
    squared_radii_fake = _squared_radii(fake, k) + TOLERANCE * largest
    balls = torch.zeros(len(fake), dtype=torch.float64)  # of real points, around each fake point
    recalled, covered = [], []
    chunks = squared_radii.split(CHUNK)
    for squares, limits in zip(_squared_distances(real, fake), chunks, strict=True):
        inside = squares <= limits.unsqueeze(1)
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((squares <= squared_radii_fake).any(dim=1))
    shares = {
        "precision": balls > 0,
        "recall": torch.cat(recalled),
        "density": balls / k,
        "coverage": torch.cat(covered),
    }
    return {name: float(values.double().mean()) for name, values in shares.items()}


def _squared_radii(points: Tensor, k: int) -> Tensor:
    """The squared distance of each point to its k-th nearest neighbor, [N]."""
    # The nearest of all is the point itself.
    chunks = _squared_distances(points, points)
    return torch.cat([squares.topk(k + 1, largest=False).values[:, k] for squares in chunks])


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """|a|² + |b|² − 2 a·b, some rows of [A, B] at a time; in float64 the error is negligible."""
    norms = b.square().sum(dim=1)
    for chunk in a.split(CHUNK):
        own_norms = chunk.square().sum(dim=1, keepdim=True)
        yield torch.addmm(norms, chunk, b.T, alpha=-2).add_(own_norms)
