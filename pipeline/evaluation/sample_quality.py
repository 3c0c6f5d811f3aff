"""How near samples come to real images: two sets of features (of the judge, classifier.py) compared.

The Fréchet distance takes each set for a Gaussian; precision, recall, density and coverage ask of every point whether
it lies within reach of one of the other set. The features are not Inception's and the distance is not an FID: it
compares with distances by the same judge between as many images, and with nothing else.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.runtime.device import one_thread

NEIGHBORS = 5
CHUNK = 1 << 21  # distances held at a time
SPARE = 10  # points beyond the k nearest that are looked at closely; with more that are as near, all are


class PRDC(NamedTuple):
    """Shares in 0 … 1; density alone may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def quality(real: Tensor, fake: Tensor) -> dict[str, float]:
    """`fd_judge` and the four of `prdc` by their names: features [N, F] of real images and [M, F] of samples."""
    return {"fd_judge": frechet_distance(real, fake)} | prdc(real, fake)._asdict()


@one_thread()
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of the Gaussians with the moments of a [N, F] and b [M, F].

    (Dowson & Landau 1982; of features, Heusel et al. 2017, eq. 6.) (Σ_a Σ_b)^½ has the trace of
    (Σ_a^½ Σ_b Σ_a^½)^½: the sum of the singular values of Σ_a^½ Σ_b^½, which are real and not below 0 whatever the
    rank of a covariance. The roots come from symmetric eigendecompositions. Covariances are over N − 1 and M − 1.
    Raises ValueError for fewer than two points in a set, or points that are not finite.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance takes two points or more (got {len(a)} and {len(b)})")
    a, b = a.double(), b.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("points that are not finite")
    between = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    root_a, root_b = _root(a), _root(b)
    common = torch.linalg.svdvals(root_a @ root_b).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * common
    return max(0.0, float(between + spread))  # of equal sets 0 but for rounding, which may fall below


def _root(points: Tensor) -> Tensor:
    """Σ^½ [F, F], symmetric, of the covariance Σ of points [N, F]."""
    values, vectors = torch.linalg.eigh(points.T.cov().view(points.shape[1], points.shape[1]))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def prdc(real: Tensor, fake: Tensor, k: int = NEIGHBORS) -> PRDC:
    """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020): [N, F] and [M, F].

    A point reaches as far as its k-th nearest neighbor in its own set. Precision: the share of fake points within the
    reach of a real one; recall: of real points within that of a fake one; density: the mean number of real points in
    whose reach a fake one lies, over k; coverage: the share of real points with a fake one in reach.
    Raises ValueError unless each set has more than k points.
    """
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"{k} neighbors take at least {max(k, 1) + 1} points (got {len(real)} and {len(fake)})")
    reach_real, reach_fake = _reach(real, k), _reach(fake, k)
    inside = torch.zeros(len(fake), dtype=torch.int64)  # how many real points reach each fake one
    recalled, covered = 0, 0
    step = max(1, CHUNK // len(fake))
    for points, reach in zip(real.split(step), reach_real.split(step), strict=True):
        squares, error = _squares(points, fake)
        limit = torch.maximum(reach.unsqueeze(1), reach_fake).square_()
        distances = _distances_where(squares <= limit.add_(error), points, fake)
        reached = distances <= reach.unsqueeze(1)
        inside += reached.sum(dim=0)
        covered += int(reached.any(dim=1).sum())
        recalled += int((distances <= reach_fake).any(dim=1).sum())
    return PRDC(
        precision=int((inside > 0).sum()) / len(fake),
        recall=recalled / len(real),
        density=int(inside.sum()) / (k * len(fake)),
        coverage=covered / len(real),
    )


def _reach(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbor, [N]; the nearest of all is the point itself."""
    step = max(1, CHUNK // len(points))
    found = []
    for chunk in points.split(step):
        squares, error = _squares(chunk, points)
        nearest = squares.topk(min(k + 1 + SPARE, len(points)), dim=1, largest=False)
        limit = nearest.values[:, k : k + 1] + 2 * error
        if (nearest.values[:, -1:] > limit).all():  # whatever may be among the k is among these
            distances = _distances(chunk.unsqueeze(1), points[nearest.indices]).squeeze(1)
        else:
            distances = _distances_where(squares <= limit, chunk, points)
        found.append(distances.topk(k + 1, dim=1, largest=False).values[:, k])
    return torch.cat(found)


def _squares(a: Tensor, b: Tensor) -> tuple[Tensor, float]:
    """|a|² + |b|² − 2 a·b of each pair, [A, B], and by how much that may miss the square of its distance, at most.

    A matrix product takes a tenth of the time, and cancels: enough to tell which pairs are worth a closer look.
    """
    of_a, of_b = a.square().sum(dim=1), b.square().sum(dim=1)
    squares = torch.addmm(of_b, a, b.T, alpha=-2).add_(of_a.unsqueeze(1))
    # Each of the three is a sum of F terms, and so is the distance; its error is at most F roundings of the sum of all.
    error = 8 * (a.shape[1] + 2) * torch.finfo(a.dtype).eps * float(of_a.amax() + of_b.amax())
    return squares, error


def _distances_where(near: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The distances [A, B] of the pairs that are `near`, bool [A, B]; of others they may be infinite."""
    if int(near.sum()) > near.numel() // 16:
        return _distances(a, b)
    row, column = near.nonzero(as_tuple=True)
    distances = torch.full(near.shape, torch.inf, dtype=a.dtype)
    distances[row, column] = _distances(a[row].unsqueeze(1), b[column].unsqueeze(1)).flatten()
    return distances


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Pair by pair and not by a matrix product: exact for equal points, and the same bits in any chunk, on any thread.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def class_shares(classes: Tensor) -> Tensor:
    """The share of each digit among classes [N] in 0 … 9: [10], in float64. Raises ValueError where there are none."""
    if len(classes) == 0:
        raise ValueError("no classes to count")
    return classes.bincount(minlength=10).double() / len(classes)
