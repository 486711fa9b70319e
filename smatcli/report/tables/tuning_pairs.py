"""Paired differences between rows of tuning and segmentation tables: over the seeds (and folds) that both have."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from smatcli.data.catalogue.suites import means
from smatcli.errors import UserError
from smatcli.report.tables.ours import signed
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.analysis import FOLDER, read_analysis
from smatcli.runs.statistics import UNKNOWN, Estimate, across_seeds

if TYPE_CHECKING:
    from smatcli.report.results.tuning_runs import Tuned

MOST = 8  # rows of which all pairs are compared
MOST_DATASETS = 6  # columns; beyond, the means alone
MEANS = ("Natural", "Specialized", "Structured", "Mean")


@dataclass(frozen=True)
class Trial:
    """One score (share) of a row's label on a dataset; `unit` is what is paired by (a seed, or a seed and a fold), `images` what must be
    equal for two scores to be compared."""

    label: str
    tuner: str
    dataset: str
    unit: Hashable
    score: float
    images: Hashable = None


def chosen_pairs(trials: Sequence[Trial], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """(first, second) labels: each label against the baselines; without any all pairs of up to `MOST` labels, else those of one tuner."""
    tuner = {one.label: one.tuner for one in trials}
    labels = list(tuner)
    if baselines:
        return [(label, base) for base in baselines for label in labels if label != base and not _twice(label, base, baselines)]
    pairs = [(first, second) for second, first in combinations(labels, 2)]
    return pairs if len(labels) <= MOST else [(a, b) for a, b in pairs if tuner[a] == tuner[b]]


def _twice(label: str, base: str, baselines: Sequence[str]) -> bool:
    return label in baselines and baselines.index(label) < baselines.index(base)


def pairs_table(
    stem: str, heading: str, what: str, trials: Sequence[Trial], baselines: Sequence[str], titles: Mapping[str, str], suite: str,
    digits: int, notes: Sequence[str] = (),
) -> Table | None:  # fmt: skip
    """A row a pair: the difference by dataset and of the means, ± the 95% half-width of Student's t over the paired units.

    `what` is measured (accuracy), `titles` are the datasets in order with their heads. None where no pair has a common unit.
    """
    by: dict[tuple[str, str], dict[Hashable, Trial]] = {}
    for one in trials:
        by.setdefault((one.label, one.dataset), {})[one.unit] = one
    rows, counts, heads, left_out = [], set(), _heads(trials, titles, suite), False
    for first, second in chosen_pairs(trials, baselines):
        shared: dict[str, dict[Hashable, float]] = {}
        for dataset in titles:
            ours, theirs = by.get((first, dataset), {}), by.get((second, dataset), {})
            common = [u for u in ours if u in theirs]
            shared[dataset] = {u: ours[u].score - theirs[u].score for u in common if ours[u].images == theirs[u].images}
            left_out |= len(shared[dataset]) < len(common)
        each = [value for s in shared.values() for value in s.values()]
        if each:
            found = {d: across_seeds(list(s.values())) for d, s in shared.items()} | _means(shared, suite)
            counts |= {len(s) for s in shared.values() if s}
            won = Cell(text=f"{sum(v > 0 for v in each)} / {sum(v < 0 for v in each)} of {len(each)}")
            rows.append(Row(f"{first} vs. {second}", [*(signed(found[h], tested=True) for h in heads), won]))
    if not rows:
        return None
    number = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    caption = (
        f"Differences in points of {what}, first minus second, ± 95% half-width (Student's t) over {number} pairs on the same images. "
        "Bold: 0 lies outside. Last column: pairs in which the first is better / worse."
    )
    notes = [*(["Runs on other images are not compared."] if left_out else []), *notes]
    shown = [*(titles.get(head, head) for head in heads), "Better / worse"]
    return Table(stem, heading, caption, "Difference", shown, [Block("", rows)], digits=digits, notes=notes)


def _means(shared: Mapping[str, Mapping[Hashable, float]], suite: str) -> dict[str, Estimate]:
    """The differences of the means, over the units that every dataset has; unknown where a dataset (of its group) is missing."""
    there = [set(s) for s in shared.values() if s]
    both = set.intersection(*there) if suite or len(there) == len(shared) else set()
    by_unit = [means({d: s[u] for d, s in shared.items() if u in s}, suite) for u in sorted(both, key=repr)]
    return {m: _over([v[m] for v in by_unit if m in v], len(by_unit)) for m in MEANS}


def _over(values: list[float], units: int) -> Estimate:
    """Their mean and half-width, where every unit has one."""
    return across_seeds(values) if values and len(values) == units else UNKNOWN


def _heads(trials: Sequence[Trial], titles: Mapping[str, str], suite: str) -> list[str]:
    """Datasets where they are few, then the means that some row has."""
    labels = dict.fromkeys(one.label for one in trials)
    found: set[str] = set()
    for label in labels:
        own = {one.dataset: one.score for one in trials if one.label == label}
        found |= set(means(own, suite)) if suite or (len(own) == len(titles) > 1) else set()
    average = [name for name in MEANS if name in found]
    return [*(titles if len(titles) <= MOST_DATASETS or not average else ()), *average]


DIGITS = 3
COLUMNS = ("cosine", "|cosine|", "|cosine| of b", "|cosine| of a")


def similarity_tables(tuned: Sequence["Tuned"]) -> list[Table]:
    """A row a tuner, for each dataset the mean cosine and |cosine| of all pairs within the layers, and |cosine| of their factors.

    Empty without an analysis `similarity`.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for one in tuned:
        path = one.run.path / FOLDER / "similarity.h5"
        try:
            arrays = read_analysis(path).groups["all"] if path.is_file() else None
            values = None if arrays is None else np.concatenate([arrays["model"], arrays["factors"]])
        except (UserError, KeyError):
            continue  # the figures' reader names it
        if values is not None and np.shape(values) == (4,) and np.isfinite(values).all():
            found.setdefault((one.label, one.dataset), []).append(np.asarray(values, np.float64))
    if not found:
        return []
    labels = list(dict.fromkeys(one.label for one in tuned if any(label == one.label for label, _ in found)))
    datasets = sorted({dataset for _, dataset in found})
    rows = [Row(label, [cell for d in datasets for cell in _cells(found.get((label, d), []))]) for label in labels]
    named = len(datasets) > 1
    heads = [f"{d}: {what}" if named else what for d in datasets for what in COLUMNS]
    counts = sorted({len(values) for values in found.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' if counts[0] > 1 else ''}"
    caption = (
        "Mean cosine, and mean |cosine|, of the weight changes of two experts of a layer (LoRA: of its rank-one parts) over all pairs of "
        "all layers, and |cosine| of their factors alone (change = b a); "
        f"mean{' ± standard deviation' if counts[0] > 1 else ''} of {seeds}. 0: the experts are orthogonal."
    )
    return [Table("tuning-similarity", "Similarity of experts", caption, "Tuner", heads, [Block("", rows)])]


def _cells(values: Sequence[np.ndarray]) -> list[Cell]:
    if not values:
        return [Cell(text="")] * len(COLUMNS)
    every = np.stack(values)
    spread = every.std(0, ddof=1) if len(every) > 1 else np.full(len(COLUMNS), math.nan)
    return [
        Cell(text=f"{m + 0.0:.{DIGITS}f}" + (f" ± {s:.{DIGITS}f}" if math.isfinite(s) else ""))
        for m, s in zip(every.mean(0), spread, strict=True)
    ]
