"""Calibration and confusion compared with values computed by hand."""

import math

import numpy as np
import pytest

from smatcli.runs.statistics import ConfusionCount, confused_pairs, reliability


def test_calibration_error_by_hand():
    # two bins of (0, 0.5] and (0.5, 1]: 1 of 4 right at 0.4, 2 of 2 right at 0.9
    found = reliability(np.array([0.4, 0.4, 0.4, 0.4, 0.9, 0.9]), np.array([1, 0, 0, 0, 1, 1]), bins=2)
    np.testing.assert_allclose(found.accuracy, [0.25, 1.0])
    assert found.error == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_bins_hold_their_upper_end_and_empty_ones_are_left_out():
    found = reliability(np.array([0.0, 0.5, 0.500001, 1.0]), np.ones(4), bins=4)
    assert found.count.tolist() == [1, 1, 1, 1]
    assert [round(c, 3) for c in found.confidence] == [0.0, 0.5, 0.5, 1.0]


def test_a_calibrated_model_has_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 200_000)
    assert reliability(confidence, rng.uniform(size=200_000) < confidence).error < 0.005
    assert reliability(np.full(1000, 0.99), np.zeros(1000)).error == pytest.approx(0.99)


def test_pairs_that_meet_often_come_before_those_that_met_once():
    # classes 0 and 1 meet in two episodes (8 queries, 4 confused), 2 and 3 in one (2 queries, 1 confused)
    episode = np.array([0] * 6 + [1] * 4)
    label = np.array([0, 0, 1, 1, 2, 3, 0, 0, 1, 1])
    predicted = np.array([1, 0, 0, 1, 3, 3, 1, 0, 0, 1])
    first, second = confused_pairs(episode, label, predicted, 5)
    assert (first.first, first.second, first.count, first.asked) == (0, 1, 4, 8)
    assert first.rate == 0.5
    assert (second.first, second.second, second.count, second.asked) == (2, 3, 1, 2)
    assert second.sure < first.sure
    assert confused_pairs(episode, label, label, 5) == []
    assert len(confused_pairs(episode, label, predicted, 1)) == 1


def test_lower_end_of_the_interval():
    # Wilson's interval of 4 in 8, from its quadratic: p0 with |p - p0| = z sqrt(p0 (1 - p0) / n)
    low = ConfusionCount(0, 1, 4, 8).sure
    assert abs(0.5 - low) == pytest.approx(1.96 * math.sqrt(low * (1 - low) / 8))
