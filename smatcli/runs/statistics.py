"""Intervals of few-shot accuracies. They cover the sampling of episodes, for one trained model and the given datasets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95 % interval, both fractions; NaN if unknown."""

    mean: float
    half_width: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.mean)

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero (without an interval: the mean)."""
        return self.mean - (self.half_width if math.isfinite(self.half_width) else 0.0) > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero (without an interval: the mean)."""
        return self.mean + (self.half_width if math.isfinite(self.half_width) else 0.0) < 0


UNKNOWN = Estimate(math.nan, math.nan)


def interval(values: np.ndarray) -> Estimate:
    """Compute the mean of `values` [E] and its half-width 1.96 s / sqrt(n), s with n - 1; NaN entries (missing episodes) are skipped."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return UNKNOWN
    half_width = Z95 * float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
    return Estimate(float(values.mean()), half_width)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Compute the interval of `first - second`, both [E] over the same episodes in the same order."""
    return interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))


def unpaired_difference(first: Estimate, second: Estimate) -> Estimate:
    """Compute the difference of two independent estimates; their variances add."""
    return Estimate(first.mean - second.mean, math.hypot(first.half_width, second.half_width))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Compute the unweighted mean over D datasets. Their episodes are independent, so the half-width is sqrt(sum h^2) / D."""
    if not estimates or not all(e.known for e in estimates):
        return UNKNOWN
    mean = math.fsum(e.mean for e in estimates) / len(estimates)
    return Estimate(mean, math.hypot(*(e.half_width for e in estimates)) / len(estimates))


def across_seeds(means: Sequence[float]) -> Estimate:
    """Compute the mean of S trainings and its half-width t(0.975, S - 1) s / sqrt(S), which is unknown for a single training.

    Student's t is used because three seeds give a poor estimate of the spread: with 1.96, the interval would be less than half as
    wide as one that covers 95 %.
    """
    values = np.asarray(means, np.float64)
    if len(values) < 2:
        return Estimate(float(values[0]), math.nan) if len(values) else UNKNOWN
    from scipy.special import stdtrit

    half_width = float(stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(float(values.mean()), half_width)


def ranks(means: Sequence[float], tied: Callable[[int, int], bool]) -> list[float]:
    """Rank means (1 is best) as the Meta-Dataset leaderboard does: the best remaining mean and those tied with it share a rank.

    Each gets the mean of their ranks. `tied(best, other)` returns whether two differ by less than their 95 % interval. Source:
    Triantafillou et al., ICLR 2020, and the leaderboard of its repository, whose ranks the tests reproduce.
    """
    left = sorted(range(len(means)), key=lambda i: (-means[i], i))
    result, place = [0.0] * len(means), 1
    while left:
        shared = [i for i in left if i == left[0] or tied(left[0], i)]
        for i in shared:
            result[i] = place + (len(shared) - 1) / 2
        place += len(shared)
        left = [i for i in left if i not in shared]
    return result


BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Non-empty bins of equal width in confidence, with `count`, mean `confidence` and `accuracy` (fractions) of each."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1] (Guo et al., ICML 2017, eq. 3): sum_b n_b / n |accuracy_b - confidence_b|."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Sort predictions into the bins ((b - 1) / bins, b / bins] of `confidence` [n]; `correct` [n] is 0 or 1. Empty bins are dropped."""
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, weights=np.asarray(values, float), minlength=bins) for values in (confidence, correct)]
    kept = count > 0
    return Reliability(count[kept], sums[0][kept] / count[kept], sums[1][kept] / count[kept])


@dataclass(frozen=True)
class ConfusionCount:
    """Two classes of a dataset. In episodes with both, `count` of their `asked` query images were classified as the other class."""

    first: int
    second: int
    count: int
    asked: int

    @property
    def rate(self) -> float:
        return self.count / self.asked

    @property
    def sure(self) -> float:
        """Lower end of the 95 % interval of the rate (Wilson 1927), so that a pair seen once does not lead."""
        z, n, p = 1.96, self.asked, self.rate
        return (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def confused_pairs(episode: np.ndarray, label: np.ndarray, predicted: np.ndarray, most: int) -> list[ConfusionCount]:
    """Return the pairs confused most often, by `ConfusionCount.sure`; pairs that were never confused are omitted.

    `episode`, `label` and `predicted` (classes of the dataset) are [n], with one entry per query image. Every class of an episode has query
    images.
    """
    count: dict[tuple[int, int], int] = {}
    asked: dict[tuple[int, int], int] = {}
    for number in np.unique(episode):
        own = episode == number
        classes, sizes = np.unique(label[own], return_counts=True)
        size = dict(zip(classes.tolist(), sizes.tolist(), strict=True))
        for a in size:
            for b in size:
                if a < b:
                    asked[a, b] = asked.get((a, b), 0) + size[a] + size[b]
        for a, b in zip(label[own].tolist(), predicted[own].tolist(), strict=True):
            if a != b:
                key = (min(a, b), max(a, b))
                count[key] = count.get(key, 0) + 1
    pairs = [ConfusionCount(*key, n, asked[key]) for key, n in count.items() if key in asked]
    return sorted(pairs, key=lambda p: (-p.sure, p.first, p.second))[:most]
