"""Intervals: held against scipy's, and against draws of which the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.commands.comparison.statistics import (
    Difference,
    between_seeds,
    largest_gap,
    paired,
    summarize,
    welch,
)


def test_over_images_it_is_the_paired_t_interval_of_many_images():
    rng = np.random.default_rng(0)
    theirs = rng.gamma(16, 6, 10_000)
    ours = theirs - 0.42 + rng.normal(0, 2, 10_000)
    gap = paired(ours[None], theirs[None])
    said = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert gap.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (gap.value - gap.half, gap.value + gap.half) == pytest.approx((said.low, said.high), abs=1e-4)
    assert gap.seeds is None and gap.sign == -1
    unpaired = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert gap.half < 0.1 * (unpaired.high - unpaired.low) / 2, "what makes an image hard cancels"


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (8, 2)])
def test_over_seeds_it_is_welchs_t_interval(n, m):
    rng = np.random.default_rng(n + m)
    ours, theirs = rng.normal(90, 0.1, n), rng.normal(91, 0.5, m)
    said = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert welch(ours, theirs) == pytest.approx((said.high - said.low) / 2, rel=1e-6)


def test_both_parts_are_taken_together_in_quadrature():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(90, 1, (3, 400)), rng.normal(90, 1, (2, 400))
    gap = paired(ours, theirs)
    assert gap.seeds == welch(ours.mean(axis=1), theirs.mean(axis=1))
    assert gap.half == pytest.approx(math.hypot(gap.images, gap.seeds))


def test_the_other_way_round_it_is_the_same_interval():
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(0, 1, (3, 50)), rng.normal(0.3, 1, (2, 50))
    one, other = paired(ours, theirs), paired(theirs, ours)
    assert (one.value, one.half, one.sign) == pytest.approx((-other.value, other.half, -other.sign))


@pytest.mark.parametrize("value", [-0.5, 0.0, 0.7])
def test_over_images_it_covers_the_truth_as_often_as_it_says(value):
    rng, trials = np.random.default_rng(3), 2000
    gaps = rng.normal(value, 2.0, (trials, 500))
    covered = sum(
        abs((gap := paired(row[None], np.zeros((1, 500)))).value - value) <= gap.half for row in gaps
    )  # fmt: skip
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("seeds", [2, 4])
def test_over_seeds_and_images_it_covers_the_truth_at_least_as_often_as_it_says(seeds):
    """What a seed changes for all images, and what it changes for each."""
    rng, trials, value = np.random.default_rng(4), 1000, 0.3
    covered = 0
    for _ in range(trials):
        hard = rng.normal(90, 20, 200)
        ours, theirs = (hard + rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 1, (seeds, 200)) for _ in range(2))
        gap = paired(ours + value, theirs)
        covered += abs(gap.value - value) <= gap.half
    assert covered / trials > 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


def test_two_seeds_that_only_the_images_tell_apart_cover_zero():
    rng, trials = np.random.default_rng(5), 1000
    values = rng.normal(90, 20, (trials, 1, 200)) + rng.normal(0, 1, (trials, 2, 200))
    signs = [between_seeds(pair)[0].sign for pair in values]
    assert abs(signs.count(0) / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)
    assert [gap.sign for gap in between_seeds(np.stack([values[0, 0], values[0, 1] + 1, values[0, 0]]))] == [1, 0]


def test_of_one_configuration_with_itself_nothing_is_left():
    values = np.random.default_rng(6).normal(90, 1, (2, 50))
    gap = paired(values, values)
    assert (gap.value, gap.images, gap.sign) == (0, 0, 0)
    assert welch(np.ones(2), np.ones(2)) == 0
    assert paired(np.ones((1, 1)), np.zeros((1, 1))).sign == 0, "one image says nothing"


def test_sign():
    assert [Difference(value, 0.3, 0.4).sign for value in (-0.6, -0.5, 0.1, 0.5, 0.6)] == [-1, 0, 0, 0, 1]


def test_summary_and_gap_between_seeds():
    several = summarize([1.0, 2.0, 4.0], [0.3, None, 0.4])
    assert several.mean == pytest.approx(7 / 3) and several.sd == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert several.se == pytest.approx(math.sqrt(0.125)) and several.spread == several.sd and several.seeds == 3
    assert summarize([1.0], [0.3]).spread == 0.3 and summarize([1.0], [None]).spread is None
    assert largest_gap([[1.0], [2.0, 2.5], [3.0, 1.0, 2.0]]) == 2.0 and largest_gap([[1.0]]) is None
