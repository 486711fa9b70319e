"""Differences between two columns over the same episodes, and ties, ranks and tests based on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smatcli.report.results.frame import EvaluationResult
from smatcli.report.results.groups import Column, Key
from smatcli.report.results.significance import Outcome, outcomes, resampled_means
from smatcli.runs.statistics import UNKNOWN, Estimate, average, paired_difference, ranks, unpaired_difference


@dataclass(frozen=True)
class Difference:
    """The `estimate` of first - second; `paired` if it was computed episode by episode."""

    estimate: Estimate
    paired: bool


def difference(first: Column, second: Column, key: Key) -> Difference:
    """Compute the difference on one dataset: paired if both have the same episodes, else from the two intervals."""
    if key not in first.estimates or key not in second.estimates:
        return Difference(UNKNOWN, paired=True)
    if same_episodes(first, second, key):
        a, b = (c.evaluation.accuracies[key.dataset] for c in (first, second))
        return Difference(paired_difference(a[:, 1], b[:, 1]), paired=True)
    return Difference(unpaired_difference(first.estimates[key], second.estimates[key]), paired=False)


def same_episodes(first: Column, second: Column, key: Key) -> bool:
    """Return whether both have the same episodes: equal numbers, and equal lists (a row has one protocol)."""
    a, b = (c.evaluation.accuracies.get(key.dataset) for c in (first, second))
    return a is not None and b is not None and np.array_equal(a[:, 0], b[:, 0]) and same_episode_list(first, second, key)


def same_episode_list(first: Column, second: Column, key: Key) -> bool:
    """Return whether both drew the same list of episodes: by its hash, else by seed and store."""
    a, b = (c.evaluation.by_dataset.get(key.dataset) for c in (first, second))
    if a is not None and b is not None and a.list_hash and b.list_hash:
        return a.list_hash == b.list_hash
    return _drawn_by(first.evaluation, key.dataset) == _drawn_by(second.evaluation, key.dataset)


def all_paired(columns: Sequence[Column]) -> bool:
    """Return whether every difference between these columns is paired."""
    for key in {key for column in columns for key in column.estimates}:
        first, *others = [column for column in columns if key in column.estimates]
        if not all(same_episodes(first, other, key) for other in others):
            return False
    return True


def _drawn_by(evaluation: EvaluationResult, dataset: str) -> tuple[Any, Any]:
    return evaluation.settings.get("seed"), evaluation.drawn.get(dataset)


def average_difference(first: Column, second: Column, keys: Sequence[Key]) -> Difference:
    """Average the differences over datasets; unknown if a dataset is missing."""
    parts = [difference(first, second, key) for key in keys]
    return Difference(average([p.estimate for p in parts]), all(p.paired for p in parts))


def best(columns: Sequence[Column], keys: Sequence[Key]) -> set[int]:
    """Return the columns to print in bold: the highest average over `keys`, and those whose interval of the difference includes 0."""
    means = [c.average(keys) for c in columns]
    complete = [i for i, m in enumerate(means) if m.known]
    if len(complete) < 2:
        return set()
    top = max(complete, key=lambda i: (means[i].mean, -i))
    tied = {i for i in complete if not average_difference(columns[top], columns[i], keys).estimate.above_zero}
    return tied | {top}


def average_ranks(columns: Sequence[Column], keys: Sequence[Key]) -> dict[int, float]:
    """Return the average rank over the datasets `keys` of each column that has all of them; empty for fewer than two columns.

    Ranks follow Meta-Dataset (see `ranks`). As in `best`, two columns are tied if the interval of their difference, paired where possible,
    includes 0.
    """
    whole = [i for i, c in enumerate(columns) if keys and all(key in c.estimates and c.estimates[key].known for key in keys)]
    if len(whole) < 2:
        return {}
    total = np.zeros(len(whole))
    for key in keys:
        own = [columns[i] for i in whole]

        def tied(top: int, other: int, own: list[Column] = own, key: Key = key) -> bool:
            return not difference(own[top], own[other], key).estimate.above_zero

        total += ranks([c.estimates[key].mean for c in own], tied)
    return {i: float(rank) / len(keys) for i, rank in zip(whole, total, strict=True)}


def compared(pairs: Sequence[tuple[Column, Column]], keys: Sequence[Key]) -> tuple[list[int], dict[Key, list[Outcome]], list[Outcome]]:
    """Test first - second for the pairs of columns that have the same episodes on all `keys`.

    Returns the positions of these pairs, their outcomes by dataset, and their outcomes for the average over datasets.
    """
    places = [
        i for i, (a, b) in enumerate(pairs) if keys and all(k in a.estimates and k in b.estimates and same_episodes(a, b, k) for k in keys)
    ]
    if not places:
        return [], {}, []
    differences, means, single = [], [], {}
    for d, key in enumerate(keys):
        own = [_aligned(*pairs[i], key) for i in places]
        if len({len(values) for values in own}) > 1:  # some evaluations have more episodes than the group
            return [], {}, []
        differences.append(own)
        means.append(resampled_means(np.stack(own), seed=d))
        single[key] = outcomes([own], [means[-1]])
    return places, single, outcomes(differences, means)


def _aligned(first: Column, second: Column, key: Key) -> np.ndarray:
    a, b = (c.evaluation.accuracies[key.dataset][:, 1] for c in (first, second))
    return np.asarray(a - b, np.float64)
