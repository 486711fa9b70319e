"""Significance of differences on the same episodes: paired bootstrap and Wilcoxon's signed-rank test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
_BLOCK = 1000  # resamples drawn at a time: 5 MB for 600 episodes
FEW = 13  # differences; for up to this many, all signs are enumerated


@dataclass(frozen=True)
class Outcome:
    """Result of a comparison: 95 % percentile interval (`low`, `high`) of the mean difference (fractions), and two-sided p-values."""

    low: float
    high: float
    p_bootstrap: float
    p_wilcoxon: float


def resampled_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return the means [R, C] of `values` [C, E] over episodes drawn with replacement; all rows use the same episodes."""
    episodes, rng = values.shape[1], np.random.default_rng(seed)
    columns = np.ascontiguousarray(values.T, dtype=np.float64)
    means = []
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        drawn = rng.integers(0, episodes, (rows, episodes)) + episodes * np.arange(rows)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=rows * episodes).reshape(rows, episodes)
        means.append(counts @ columns / episodes)
    return np.concatenate(means)


def outcomes(differences: Sequence[Sequence[np.ndarray]], means: Sequence[np.ndarray]) -> list[Outcome]:
    """Test C comparisons over D datasets: `differences[d][c]` [E_d] per episode, `means[d]` [R, C] of their resamples.

    The statistic is the mean over datasets of the mean differences. The bootstrap draws episodes within each dataset; datasets are fixed
    (Efron & Tibshirani 1993). Its p is twice the fraction of resamples on the rarer side of 0, at least 1 / R. Wilcoxon's test pools the
    episodes of all datasets.
    """
    drawn = np.mean(means, axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    p = np.clip(2 * np.minimum((drawn <= 0).mean(0), (drawn >= 0).mean(0)), 1 / len(drawn), 1.0)
    pooled = [np.concatenate([own[c] for own in differences]) for c in range(drawn.shape[1])]
    return [Outcome(float(low[c]), float(high[c]), float(p[c]), wilcoxon(pooled[c])) for c in range(drawn.shape[1])]


def wilcoxon(differences: np.ndarray) -> float:
    """Return the two-sided p of the signed-rank test of `differences` [E] (fractions). Zeros are dropped; p is 1 if all are zero."""
    rounded = np.round(differences, 12)  # rounded, so that 0.8 - 0.6 and 0.4 - 0.2 are ties
    if not rounded.any():
        return 1.0
    kept = rounded[rounded != 0]
    if len(kept) <= FEW:
        return _exact(kept)
    from scipy.stats import wilcoxon as signed_rank

    return float(signed_rank(rounded).pvalue)


def _exact(differences: np.ndarray) -> float:
    """Compute the test of few non-zero differences [n] over all 2^n signs; with ties, scipy's enumeration takes seconds."""
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(differences))
    signs = (np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks))) & 1
    far = np.abs(signs @ ranks - ranks.sum() / 2)
    return float((far >= abs(ranks[differences > 0].sum() - ranks.sum() / 2) - 1e-9).mean())


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (1979); unknown values stay unknown and are not counted."""
    order = sorted((i for i, p in enumerate(values) if math.isfinite(p)), key=lambda i: values[i])
    adjusted, highest = list(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * values[i]))
        adjusted[i] = highest
    return adjusted
