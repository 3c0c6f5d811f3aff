"""Intervals against scipy, closed forms, and simulations in which the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.commands.comparison.statistics import Difference, paired, welch


def test_with_one_seed_the_interval_is_the_paired_interval_over_images():
    rng = np.random.default_rng(0)
    theirs = rng.gamma(16, 6, 10_000)
    ours = theirs - 0.42 + rng.normal(0, 2, 10_000)
    gap = paired(ours[None], theirs[None])
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert gap.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert gap.value - gap.half == pytest.approx(expected.low, abs=1e-4)
    assert gap.value + gap.half == pytest.approx(expected.high, abs=1e-4)
    assert gap.seeds is None and gap.sign == -1


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (8, 2)])
def test_the_seed_part_is_welchs_interval(n, m):
    rng = np.random.default_rng(n + m)
    ours, theirs = rng.normal(90, 0.1, n), rng.normal(91, 0.5, m)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert welch(ours, theirs) == pytest.approx((expected.high - expected.low) / 2, rel=1e-9)


def test_seed_and_image_variance_are_added():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(90, 1, (3, 400)), rng.normal(90, 1, (2, 400))
    gap, reverse = paired(ours, theirs), paired(theirs, ours)
    assert gap.seeds == welch(ours.mean(axis=1), theirs.mean(axis=1))
    assert gap.half == pytest.approx(math.hypot(gap.images, gap.seeds))
    assert (gap.value, gap.half) == pytest.approx((-reverse.value, reverse.half))


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_interval_covers_the_true_difference(seeds):
    """A seed shifts all images by N(0, 0.2^2), except with one seed, where that is not included."""
    rng, trials, shift = np.random.default_rng(4), 1000, 0.2 * (seeds > 1)

    def covered() -> bool:
        hard = rng.normal(90, 20, 200)
        values = hard + rng.normal(0, shift, (2, seeds, 1)) + rng.normal(0, 1, (2, seeds, 200))
        gap = paired(values[0] + 0.3, values[1])
        return abs(gap.value - 0.3) <= gap.half

    share = sum(covered() for _ in range(trials)) / trials
    assert share > 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


def test_equal_values_have_no_difference():
    values = np.random.default_rng(6).normal(90, 1, (2, 50))
    gap = paired(values, values)
    assert (gap.value, gap.images, gap.sign) == (0, 0, 0)
    assert welch(np.ones(2), np.ones(2)) == 0
    assert paired(np.array([]), values) is None


def test_the_sign_is_zero_if_the_interval_contains_zero():
    gaps = [Difference(value, 0.3, 0.4) for value in (-0.6, -0.5, 0.1, 0.5, 0.6)]
    assert [gap.sign for gap in gaps] == [-1, 0, 0, 0, 1]
    assert Difference(0.5, math.nan).sign == 0
