"""What the difference between two configurations is worth: numbers in, numbers out.

All runs are measured on the same test images with the same noise, so a difference is taken image by image: what makes
one digit harder than another cancels, and the interval is far narrower than that of two separate means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
NORMAL = 1.96  # its quantile for that level: there are thousands of images

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """One quantity of a group of runs: the mean over its seeds, and how far one may trust it."""

    mean: float
    sd: float | None  # between seeds; None with one
    se: float | None  # over the test images, of one run; None where it was not measured
    seeds: int

    @property
    def spread(self) -> float | None:
        """What is drawn as an error bar: between seeds where there are several, else over the images."""
        return self.se if self.sd is None else self.sd


@dataclass(frozen=True)
class Difference:
    """A mean difference to a baseline, and the half widths of its 95 % interval, all in the unit of the quantity."""

    value: float
    images: float  # of what other test images would give
    seeds: float | None = None  # of what other seeds would give; None where one side has a single seed

    @property
    def half(self) -> float:
        """The half width of the whole interval: both parts, which are independent of one another, in quadrature."""
        return math.hypot(self.images, self.seeds or 0.0)

    @property
    def sign(self) -> int:
        """-1 where the interval lies below zero, 1 where it lies above, 0 where it covers zero."""
        return 0 if abs(self.value) <= self.half else int(math.copysign(1, self.value))


def summarize(values: Sequence[float], errors: Sequence[float | None]) -> Summary:
    """Mean and standard deviation (n − 1) over seeds. The error is the root mean square of the runs' own ones."""
    known = [error for error in errors if error is not None]
    return Summary(
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        se=float(np.sqrt(np.mean(np.square(known)))) if known else None,
        seeds=len(values),
    )


def paired(ours: Array, theirs: Array) -> Difference:
    """The difference ours − theirs of per-image values [seeds, images]; the images are the same, the seeds are not.

    Over images: 1.96 · sd(d) / √N of the per-image differences d between the means over seeds. Over seeds: Welch's
    interval of the runs' means, where both sides have two or more.
    """
    gaps = ours.mean(axis=0) - theirs.mean(axis=0)
    images = NORMAL * float(gaps.std(ddof=1)) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
    seeds = welch(ours.mean(axis=1), theirs.mean(axis=1)) if min(len(ours), len(theirs)) > 1 else None
    return Difference(float(gaps.mean()), images, seeds)


def welch(ours: Array, theirs: Array) -> float:
    """The half width of Welch's t interval for the difference of two means; each side has two values or more.

    Welch, "The generalization of Student's problem when several different population variances are involved", 1947.
    """
    parts = np.array([side.var(ddof=1) / len(side) for side in (ours, theirs)])
    total = float(parts.sum())
    if total == 0:
        return 0.0
    freedom = total**2 / float((parts**2 / (np.array([len(ours), len(theirs)]) - 1)).sum())
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(total)


def between_seeds(values: Array) -> list[Difference]:
    """How each seed of one configuration differs from its first, per-image values [seeds, images]: over images alone.

    An interval that does not cover zero says that seeds differ by more than the choice of test images explains.
    """
    return [paired(values[k : k + 1], values[:1]) for k in range(1, len(values))]


def largest_gap(means: Sequence[Sequence[float]]) -> float | None:
    """The largest difference between two seeds of one configuration, over configurations; None without two seeds."""
    gaps = [max(values) - min(values) for values in means if len(values) > 1]
    return max(gaps, default=None)
