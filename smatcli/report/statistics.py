"""Intervals of few-shot accuracies. An interval speaks of the draw of episodes, for one trained model and the given datasets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95 % interval, both as shares; NaN where not known."""

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
    """Mean and 1.96 s / sqrt(n) of `values` [E], s with n - 1; NaN entries (episodes not done) are left out."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return UNKNOWN
    half_width = Z95 * float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
    return Estimate(float(values.mean()), half_width)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Interval of `first - second`, both [E] over the same episodes in the same order."""
    return interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))


def unpaired_difference(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two independent estimates: variances add."""
    return Estimate(first.mean - second.mean, math.hypot(first.half_width, second.half_width))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean over datasets; episodes of different datasets are independent, so the half-width is sqrt(sum h^2) / D."""
    if not estimates or not all(e.known for e in estimates):
        return UNKNOWN
    mean = math.fsum(e.mean for e in estimates) / len(estimates)
    return Estimate(mean, math.hypot(*(e.half_width for e in estimates)) / len(estimates))
