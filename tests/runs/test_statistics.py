"""Intervals against scipy, and pairing against the variance of a difference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from smatcli.runs.statistics import UNKNOWN, Estimate, average, interval, paired_difference, unpaired_difference

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=50)


@given(SHARES)
def test_interval_is_mean_and_standard_error(values):
    found = interval(np.array(values))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.half_width == pytest.approx(1.96 * stats.sem(values), abs=1e-12)


def test_interval_of_few_and_missing_values():
    assert interval(np.array([])) is UNKNOWN
    one = interval(np.array([0.5, math.nan]))
    assert one.mean == 0.5
    assert math.isnan(one.half_width)
    assert interval(np.array([0.2, 0.4, math.nan])) == interval(np.array([0.2, 0.4]))


def test_pairing_removes_what_episodes_share():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0.6, 0.1, 400), rng.normal(0.01, 0.02, 400)
    first, second = shared + own, shared
    paired = paired_difference(first, second)
    assert paired.mean == pytest.approx(own.mean())
    assert paired.half_width == pytest.approx(1.96 * stats.sem(own))
    low, high = stats.ttest_rel(first, second).confidence_interval()
    assert paired.half_width == pytest.approx((high - low) / 2, rel=0.01)
    unpaired = unpaired_difference(interval(first), interval(second))
    assert unpaired.mean == pytest.approx(paired.mean)
    assert unpaired.half_width == pytest.approx(1.96 * math.sqrt(stats.sem(first) ** 2 + stats.sem(second) ** 2))
    assert unpaired.half_width > 5 * paired.half_width
    assert paired.above_zero
    assert not paired.below_zero
    assert not unpaired.above_zero


def test_average_has_the_coverage_it_promises():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        parts = [interval(rng.normal(mean, spread, 60)) for mean, spread in ((0.3, 0.1), (0.6, 0.3), (0.9, 0.05))]
        found = average(parts)
        inside += abs(found.mean - 0.6) <= found.half_width
    assert stats.binomtest(inside, 400, 0.945).pvalue > 0.01


def test_average_needs_every_part():
    parts = [Estimate(0.2, 0.03), Estimate(0.6, 0.04)]
    found = average(parts)
    assert (found.mean, found.half_width) == pytest.approx((0.4, 0.025))
    assert not average([*parts, UNKNOWN]).known
    assert not average([]).known
