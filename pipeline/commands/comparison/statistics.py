"""95 % intervals of the difference between two configurations.

All runs are evaluated on the same test images with the same noise, so differences are taken per
image: what makes one image harder than another cancels.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
NORMAL = 1.96  # its quantile of the normal distribution: there are thousands of images

Array = NDArray[np.float64]


class Difference(NamedTuple):
    """A mean difference and the half widths of its 95 % interval, in the unit of the values."""

    value: float
    images: float  # from the variance over test images
    seeds: float | None = None  # from that over seeds; None if a side has a single seed

    @property
    def half(self) -> float:
        """Half width of the whole interval: the two parts are independent."""
        return math.hypot(self.images, self.seeds or 0.0)

    @property
    def sign(self) -> int:
        """-1 or 1 if the interval lies below or above zero, 0 if it contains zero."""
        return int(math.copysign(abs(self.value) > self.half, self.value))


def paired(ours: Array, theirs: Array) -> Difference | None:
    """Return ours - theirs of per-image values [seeds, images] on the same images; None without.

    Over images: the paired interval of the means over seeds. Over seeds: Welch's interval of the
    means over images, with two or more seeds on both sides.
    """
    if not ours.size or not theirs.size:
        return None
    gaps = ours.mean(axis=0) - theirs.mean(axis=0)
    value, images = float(gaps.mean()), NORMAL * float(stats.sem(gaps))
    if min(len(ours), len(theirs)) < 2:
        return Difference(value, images)
    return Difference(value, images, welch(ours.mean(axis=1), theirs.mean(axis=1)))


def welch(ours: Array, theirs: Array) -> float:
    """Return the half width of Welch's t interval for the difference of two means.

    Welch (1947), "The generalization of Student's problem when several different population
    variances are involved".
    """
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return 0.0
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(LEVEL)
    return float(interval.high - interval.low) / 2
