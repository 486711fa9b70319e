"""Bootstrap, Wilcoxon, Holm and ranks against scipy, closed forms and the published ranks of the Meta-Dataset leaderboard."""

import csv
import math

import numpy as np
import pytest
from scipy import stats

from smatcli.report.results.published import FOLDER
from smatcli.report.results.significance import holm, outcomes, resampled_means, wilcoxon
from smatcli.runs.statistics import across_seeds, ranks


def test_ranks_are_those_of_the_leaderboard():
    lines = [line for line in (FOLDER / "meta_dataset.csv").read_text().splitlines() if not line.startswith("#")]
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in csv.DictReader(lines):
        rows.setdefault((row["table"], row["dataset"]), []).append(row)
    assert sorted(map(len, rows.values())) == [11] * 10 + [18] * 10
    for place, found in rows.items():
        means, halves = ([float(row[key]) for row in found] for key in ("mean", "half_width"))

        def tied(top: int, other: int, means: list[float] = means, halves: list[float] = halves) -> bool:
            return means[top] - means[other] <= math.hypot(halves[top], halves[other])

        assert ranks(means, tied) == [float(row["rank"]) for row in found], place


def test_bootstrap_is_scipys():
    values = np.random.default_rng(0).normal(0.01, 0.1, (2, 300))
    means = resampled_means(values, 4000)
    assert means.shape == (4000, 2)
    theirs = stats.bootstrap((values[0],), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    (first, second) = outcomes([list(values)], [means])
    assert (first.low, first.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.001)
    assert means.std(0) == pytest.approx(values.std(1) / math.sqrt(300), rel=0.05)
    normal = 2 * stats.norm.sf(abs(values.mean(1)) / (values.std(1) / math.sqrt(300)))
    assert [first.p_bootstrap, second.p_bootstrap] == pytest.approx(normal, abs=0.03)
    np.testing.assert_array_equal(means, resampled_means(values, 4000))


def test_average_over_datasets_weighs_them_equally():
    rng = np.random.default_rng(2)
    small, large = rng.normal(0.02, 0.1, (1, 50)), rng.normal(-0.01, 0.02, (1, 400))
    (found,) = outcomes([list(small), list(large)], [resampled_means(small, 4000, 0), resampled_means(large, 4000, 1)])
    spread = math.hypot(small.std() / math.sqrt(50), large.std() / math.sqrt(400)) / 2
    mean = (small.mean() + large.mean()) / 2
    assert (found.low, found.high) == pytest.approx((mean - 1.96 * spread, mean + 1.96 * spread), abs=0.1 * spread)


def test_no_difference_is_no_finding():
    same = np.zeros((1, 20))
    (found,) = outcomes([list(same)], [resampled_means(same, 500)])
    assert (found.low, found.high, found.p_bootstrap, found.p_wilcoxon) == (0, 0, 1, 1)


def test_bootstrap_finds_what_is_there_and_rarely_what_is_not():
    nothing = np.random.default_rng(3).normal(0, 0.1, (80, 60))
    p = [o.p_bootstrap for o in outcomes([list(nothing)], [resampled_means(nothing, 1000)])]
    assert stats.binomtest(sum(value < 0.05 for value in p), 80, 0.06).pvalue > 0.01
    something = nothing + 0.08
    assert np.mean([o.p_bootstrap < 0.05 for o in outcomes([list(something)], [resampled_means(something, 1000)])]) > 0.99


def test_wilcoxon_counts_equal_steps_as_ties():
    # by hand: ranks of |d| are 2.5 2.5 2.5 2.5 5, zeros left out; the smaller signed sum is 2.5
    steps = np.array([0.8 - 0.6, 0.4 - 0.2, 0.6 - 0.4, 0.2 - 0.4, 0.5, 0.0])
    exact = stats.wilcoxon([2, 2, 2, -2, 5, 0])
    assert exact.statistic == 2.5
    assert wilcoxon(steps) == pytest.approx(exact.pvalue)


def test_holm_by_hand():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_interval_over_seeds_is_students():
    means = [0.5, 0.53, 0.56]
    found = across_seeds(means)
    low, high = stats.ttest_1samp(means, 0).confidence_interval()
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert across_seeds([0.4]).mean == 0.4
    assert math.isnan(across_seeds([0.4]).half_width)
    assert not across_seeds([]).known


@pytest.mark.parametrize("seed", range(4))
def test_few_differences_with_ties_as_scipy_enumerates_them(seed: int):
    from scipy.stats import PermutationMethod
    from scipy.stats import wilcoxon as signed_rank

    values = np.random.default_rng(seed).integers(-2, 5, 7) / 10
    kept = values[values != 0]
    assert wilcoxon(values) == pytest.approx(signed_rank(kept, method=PermutationMethod()).pvalue)
