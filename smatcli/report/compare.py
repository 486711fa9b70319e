"""Differences between two columns over the same counted episodes, and what follows from them: ties, gains, wins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smatcli.report.groups import Column, Key
from smatcli.report.statistics import UNKNOWN, Estimate, average, paired_difference, unpaired_difference


@dataclass(frozen=True)
class Difference:
    """`estimate` of first - second; `paired` if it was taken episode by episode."""

    estimate: Estimate
    paired: bool


def difference(first: Column, second: Column, key: Key) -> Difference:
    """The difference on one dataset: paired where both recorded the same episodes, else from the two intervals."""
    if key not in first.estimates or key not in second.estimates:
        return Difference(UNKNOWN, True)
    if same_episodes(first, second, key):
        a, b = (c.evaluation.accuracies[key.dataset] for c in (first, second))
        return Difference(paired_difference(a[:, 1], b[:, 1]), True)
    return Difference(unpaired_difference(first.estimates[key], second.estimates[key]), False)


def same_episodes(first: Column, second: Column, key: Key) -> bool:
    """Whether both recorded the same episodes: numbers, seed, store. (Protocol and split are the same within a row.)"""
    a, b = (c.evaluation.accuracies.get(key.dataset) for c in (first, second))
    if a is None or b is None or not np.array_equal(a[:, 0], b[:, 0]):
        return False
    return _drawn_by(first.evaluation.origin, key.dataset) == _drawn_by(second.evaluation.origin, key.dataset)


def all_paired(columns: Sequence[Column]) -> bool:
    """Whether every difference between these columns is taken episode by episode."""
    for key in {key for column in columns for key in column.estimates}:
        first, *others = [column for column in columns if key in column.estimates]
        if not all(same_episodes(first, other, key) for other in others):
            return False
    return True


def _drawn_by(origin: dict[str, Any], dataset: str) -> tuple[Any, Any]:
    settings, datasets = origin.get("settings") or {}, origin.get("datasets") or {}
    facts = dict(datasets.get(dataset) or {})
    facts.pop("domain", None)
    return settings.get("seed"), facts


def average_difference(first: Column, second: Column, keys: Sequence[Key]) -> Difference:
    """The mean over datasets of their differences; unknown if a dataset is missing."""
    parts = [difference(first, second, key) for key in keys]
    return Difference(average([p.estimate for p in parts]), all(p.paired for p in parts))


def best(columns: Sequence[Column], keys: Sequence[Key]) -> set[int]:
    """Columns to print in bold: the highest average over `keys`, and those whose difference from it has 0 in its interval."""
    means = [c.average(keys) for c in columns]
    known = [i for i, m in enumerate(means) if m.known]
    if len(known) < 2:
        return set()
    top = max(known, key=lambda i: (means[i].mean, -i))
    tied = {i for i in known if not average_difference(columns[top], columns[i], keys).estimate.above_zero}
    return tied | {top}
