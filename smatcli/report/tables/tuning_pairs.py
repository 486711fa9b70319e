"""Paired differences between rows of tuning and segmentation tables, over the seeds (and folds) that both have."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from smatcli.data.catalogue.suites import means
from smatcli.report.tables.ours import signed
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.statistics import UNKNOWN, Estimate, across_seeds

MOST = 8  # rows; all pairs are compared for at most this many
MOST_DATASETS = 6  # columns; with more datasets, only the means are shown
MEANS = ("Natural", "Specialized", "Structured", "Mean")


@dataclass(frozen=True)
class Trial:
    """A score (a fraction) of a row on a dataset.

    Scores are paired by `unit` (a seed, or a seed and a fold), and compared only if their `images` are equal.
    """

    label: str
    tuner: str
    dataset: str
    unit: Hashable
    score: float
    images: Hashable = None


def chosen_pairs(trials: Sequence[Trial], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of labels (first, second): each label against the baselines, or all pairs if there are none.

    With more than `MOST` labels, only labels of the same tuner are paired.
    """
    tuner = {trial.label: trial.tuner for trial in trials}
    labels = list(tuner)
    if baselines:
        return [(label, base) for base in baselines for label in labels if label != base and not _is_repeated(label, base, baselines)]
    pairs = [(first, second) for second, first in combinations(labels, 2)]
    return pairs if len(labels) <= MOST else [(a, b) for a, b in pairs if tuner[a] == tuner[b]]


def _is_repeated(label: str, base: str, baselines: Sequence[str]) -> bool:
    """Return whether the comparison of two baselines is already in the table in reverse."""
    return label in baselines and baselines.index(label) < baselines.index(base)


@dataclass(frozen=True)
class PairedComparison:
    """The subject of a table of paired differences: `measure` names the scores, `titles` maps datasets, in order, to their headings."""

    stem: str
    heading: str
    measure: str
    titles: Mapping[str, str]
    suite: str = ""
    notes: Sequence[str] = ()


def differences_table(comparison: PairedComparison, trials: Sequence[Trial], baselines: Sequence[str], digits: int) -> Table | None:
    """Return a table with one row per pair: differences by dataset and of the means, ± the 95% half-width over the paired units.

    Half-widths are those of Student's t. None if no pair has a unit in common.
    """
    titles, suite = comparison.titles, comparison.suite
    by_row: dict[tuple[str, str], dict[Hashable, Trial]] = {}
    for trial in trials:
        by_row.setdefault((trial.label, trial.dataset), {})[trial.unit] = trial
    rows, counts, heads, skipped = [], set(), _heads(trials, titles, suite), False
    for first, second in chosen_pairs(trials, baselines):
        shared: dict[str, dict[Hashable, float]] = {}
        for dataset in titles:
            ours, theirs = by_row.get((first, dataset), {}), by_row.get((second, dataset), {})
            common = [u for u in ours if u in theirs]
            shared[dataset] = {u: ours[u].score - theirs[u].score for u in common if ours[u].images == theirs[u].images}
            skipped |= len(shared[dataset]) < len(common)
        each = [value for by_unit in shared.values() for value in by_unit.values()]
        if each:
            estimates = {d: across_seeds(list(by_unit.values())) for d, by_unit in shared.items()} | _means(shared, suite)
            counts |= {len(by_unit) for by_unit in shared.values() if by_unit}
            won = Cell(text=f"{sum(v > 0 for v in each)} / {sum(v < 0 for v in each)} of {len(each)}")
            rows.append(Row(f"{first} vs. {second}", [*(signed(estimates[h], tested=True) for h in heads), won]))
    if not rows:
        return None
    number = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    caption = (
        f"Differences in points of {comparison.measure}, first minus second, ± 95% half-width (Student's t) over {number} pairs on the "
        "same images. Bold: interval excludes 0. Last column: pairs in which the first is better / worse."
    )
    notes = [*(["Runs on different images are not compared."] if skipped else []), *comparison.notes]
    shown = [*(titles.get(head, head) for head in heads), "Better / worse"]
    blocks = [Block("", rows)]
    return Table(comparison.stem, comparison.heading, caption, "Difference", shown, blocks, digits=digits, notes=notes)


def _means(shared: Mapping[str, Mapping[Hashable, float]], suite: str) -> dict[str, Estimate]:
    """Return the differences of the means over datasets, for units that all datasets have; unknown if a dataset (of a group) is missing."""
    units = [set(s) for s in shared.values() if s]
    common = set.intersection(*units) if suite or len(units) == len(shared) else set()
    by_unit = [means({d: s[u] for d, s in shared.items() if u in s}, suite) for u in sorted(common, key=repr)]
    return {m: _over([v[m] for v in by_unit if m in v], len(by_unit)) for m in MEANS}


def _over(values: list[float], units: int) -> Estimate:
    """Return the mean and half-width of `values` if every unit has a value, else unknown."""
    return across_seeds(values) if values and len(values) == units else UNKNOWN


def _heads(trials: Sequence[Trial], titles: Mapping[str, str], suite: str) -> list[str]:
    """Return the headings: the datasets, unless there are too many, and the means that at least one row has."""
    labels = dict.fromkeys(trial.label for trial in trials)
    available: set[str] = set()
    for label in labels:
        own = {trial.dataset: trial.score for trial in trials if trial.label == label}
        available |= set(means(own, suite)) if suite or (len(own) == len(titles) > 1) else set()
    average = [name for name in MEANS if name in available]
    return [*(titles if len(titles) <= MOST_DATASETS or not average else ()), *average]


def mean_and_deviation(values: Sequence[float]) -> Estimate:
    """Return the mean and the standard deviation (n - 1) of `values`; both are unknown if there are none."""
    if not values:
        return UNKNOWN
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else math.nan
    return Estimate(mean, math.sqrt(variance))
