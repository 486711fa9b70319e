"""How far confidences can be trusted, and which classes are taken for each other: numbers from recorded predictions. Knows no torch."""

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Equal-width bins of confidence that hold something: `count`, mean `confidence` and `accuracy` (shares) of each."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1] (Guo et al., ICML 2017, eq. 3): sum_b n_b / n |accuracy_b - confidence_b|."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Bins ((b - 1) / bins, b / bins] of `confidence` [n] in [0, 1] with `correct` [n] (0 or 1); empty ones are left out."""
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, weights=np.asarray(values, float), minlength=bins) for values in (confidence, correct)]
    kept = count > 0
    return Reliability(count[kept], sums[0][kept] / count[kept], sums[1][kept] / count[kept])


@dataclass(frozen=True)
class Pair:
    """Two classes of one dataset: of `asked` query images of either, in episodes that held both, `count` were taken for the other."""

    first: int
    second: int
    count: int
    asked: int

    @property
    def rate(self) -> float:
        return self.count / self.asked

    @property
    def sure(self) -> float:
        """Lower end of the 95 % interval of the rate (Wilson 1927), so that a pair that met once does not lead."""
        z, n, p = 1.96, self.asked, self.rate
        return (p + z * z / (2 * n) - z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def confused_pairs(episode: np.ndarray, label: np.ndarray, predicted: np.ndarray, most: int) -> list[Pair]:
    """The pairs that are confused most, by `Pair.sure`; pairs that were never confused are left out.

    `episode`, `label` and `predicted` (classes of the dataset) are [n], one entry a query image. Every class of an episode is asked.
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
    pairs = [Pair(*key, n, asked[key]) for key, n in count.items() if key in asked]
    return sorted(pairs, key=lambda p: (-p.sure, p.first, p.second))[:most]
