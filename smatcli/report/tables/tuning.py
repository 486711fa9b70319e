"""Tables of tuning runs: one row per tuner, one column per dataset, the means of VTAB-1k's groups, and published numbers."""

import math
from collections.abc import Mapping, Sequence

from smatcli.data.catalogue.suites import SUITES, TITLES, grouped, means, task_of
from smatcli.report.results.published import Published
from smatcli.report.results.runs import Run
from smatcli.report.results.tuning_runs import Tuned
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.report.tables.tuning_pairs import PairedComparison, Trial, differences_table, mean_and_deviation
from smatcli.runs.statistics import Estimate

CAPTIONS = {
    "vtab": "VTAB-1k: 1,000 training images per task (800 for training and 200 for selection, then all for the final training); layout "
    "of Table 1 in MLAE and pMoE. Mean: over the means of the three groups",
    "fgvc": "FGVC: layout of Table 2 in pMoE. Mean: over the five datasets",
    "": "Tuning of single datasets. Mean: over the datasets",
}
METRICS = {"accuracy": "Top-1 accuracy (%)", "auc": "Area under the ROC curve (%)", "per-class": "Mean accuracy of the classes (%)"}


def tuning_tables(tuned: Sequence[Tuned], published: Sequence[Published], digits: int = 1) -> list[Table]:
    """Return a table for each suite and metric; datasets without a suite share a table."""
    return [_table(suite, metric, own, published, digits) for (suite, metric), own in _by_suite(tuned).items()]


def tuning_pairs(tuned: Sequence[Tuned], baselines: Sequence[str] = (), digits: int = 1) -> list[Table]:
    """Return a table of paired differences for each table of `tuning_tables`, over the seeds that two rows have in common."""
    tables = []
    for (suite, metric), own in _by_suite(tuned).items():
        trials = [Trial(result.label, result.tuner, result.dataset, result.seed, result.score, result.images) for result in own]
        titles = {d: _title(d) for d in _order(suite, {result.dataset for result in own})}
        base = [name for name in baselines if name in {result.label for result in own}]
        stem, heading = f"tuning-pairs-{suite or 'datasets'}-{metric}", f"Paired differences: {TITLES.get(suite, 'tuning')}"
        what = METRICS.get(metric, metric).removesuffix(" (%)")
        comparison = PairedComparison(stem, heading, what[:1].lower() + what[1:], titles, suite)
        tables.append(differences_table(comparison, trials, base, digits))
    return [table for table in tables if table is not None]


def tuned_labels(tuned: Sequence[Tuned]) -> list[tuple[str, Run]]:
    """Return each run with the label of its row, followed by the dataset if there are several datasets."""
    several = len({result.dataset for result in tuned}) > 1
    return [(f"{result.label} ({result.dataset})" if several else result.label, result.run) for result in tuned]


def _by_suite(tuned: Sequence[Tuned]) -> dict[tuple[str, str], list[Tuned]]:
    groups: dict[tuple[str, str], list[Tuned]] = {}
    for result in tuned:
        task = task_of(result.dataset)
        groups.setdefault((task[0] if task else "", result.metric), []).append(result)
    return dict(sorted(groups.items(), reverse=True))


def _table(suite: str, metric: str, tuned: Sequence[Tuned], published: Sequence[Published], digits: int) -> Table:
    datasets = _order(suite, {result.dataset for result in tuned})
    rows, seeds, singles = [], set(), False
    for label in dict.fromkeys(result.label for result in tuned):
        own = [result for result in tuned if result.label == label]
        by_dataset = {d: [result for result in own if result.dataset == d] for d in datasets}
        estimates = {d: mean_and_deviation([result.score for result in results]) for d, results in by_dataset.items() if results}
        seeds |= {len(results) for results in by_dataset.values() if results}
        singles |= any(len(results) == 1 for results in by_dataset.values())
        average = _averages(by_dataset, suite) if suite or len(estimates) == len(datasets) > 1 else {}
        rows.append((label, own[0].parameters, estimates, average))
    groups = [name for name in ("Natural", "Specialized", "Structured", "Mean") if any(name in average for *_, average in rows)]
    heads = ["Parameters (M)", *(_title(d) for d in datasets), *groups]
    best = {d: max((e[d].mean for _, _, e, _ in rows if d in e), default=math.nan) for d in datasets}
    top = {name: max((a[name].mean for *_, a in rows if name in a), default=math.nan) for name in groups}
    body = []
    for label, parameters, estimates, average in rows:
        cells = [Cell(text="" if parameters is None else f"{parameters / 1e6:.3f}")]
        cells += [Cell(estimates[d], estimates[d].mean == best[d] and len(rows) > 1) if d in estimates else Cell(text="") for d in datasets]
        cells += [Cell(average[n], average[n].mean == top[n] and len(rows) > 1) if n in average else Cell(text="") for n in groups]
        body.append(Row(label, cells))
    blocks, notes = [Block("", body)], _notes(tuned, suite)
    beside = [p for p in published if _fits(p, suite, datasets)]
    if beside:
        blocks.append(Block("Published", [_published(p, datasets, groups, suite) for p in beside]))
        notes += [p.note for p in beside]
    families = [("", 1), *((g or "Datasets", len(m)) for g, m in grouped(datasets).items()), *([("Means", len(groups))] if groups else [])]
    counts = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else f"{max(seeds)} seed{'s' if max(seeds) > 1 else ''}"
    spread = "" if singles else " ± standard deviation over seeds"
    caption = f"{METRICS.get(metric, metric)}{spread}; mean of {counts}. {CAPTIONS[suite]}. "
    caption += "Bold: the highest mean (not tested). Parameters: number of trained parameters, without the head."
    stem, heading = f"tuning-{suite or 'datasets'}-{metric}", f"Tuning: {TITLES.get(suite, 'datasets')}"
    return Table(stem, heading, caption, "Tuner", heads, blocks, families if suite == "vtab" else [], digits, notes, spread="deviation")


def _averages(by_dataset: Mapping[str, Sequence[Tuned]], suite: str) -> dict[str, Estimate]:
    """Return the means over each group and over all datasets, with the deviation over seeds if all datasets have the same seeds."""
    over_seeds = means({d: mean_and_deviation([result.score for result in own]).mean for d, own in by_dataset.items() if own}, suite)
    seeds = {frozenset(result.seed for result in own) for own in by_dataset.values() if own}
    if len(seeds) > 1:
        return {name: Estimate(value, math.nan) for name, value in over_seeds.items()}
    each = [
        means({d: score for d, own in by_dataset.items() for score in [result.score for result in own if result.seed == seed]}, suite)
        for seed in sorted(next(iter(seeds)))
    ]
    return {name: mean_and_deviation([values[name] for values in each]) for name in over_seeds}


def _order(suite: str, names: set[str]) -> list[str]:
    """Sort datasets in the order of the suite; sort those of no suite by name."""
    tasks = [name for task in SUITES.get(suite, ()) for name in task.names]
    return sorted(names, key=lambda n: (tasks.index(n) if n in tasks else len(tasks), n))


def _title(dataset: str) -> str:
    task = task_of(dataset)
    return task[1].title if task else dataset


def unused(published: Sequence[Published], tuned: Sequence[Tuned]) -> list[Published]:
    """Return the published columns that no table of tuning results shows."""
    names = {result.dataset for result in tuned}
    suites = {task[0] if task else "" for task in map(task_of, names)}
    return [p for p in published if not any(_fits(p, suite, [*names]) for suite in suites)]


def _fits(column: Published, suite: str, datasets: Sequence[str]) -> bool:
    names = set(datasets) | ({f"{TITLES[suite]} average"} if suite else set())
    return bool(names & column.estimates.keys())


def _published(column: Published, datasets: Sequence[str], groups: Sequence[str], suite: str) -> Row:
    average = f"{TITLES.get(suite, '')} average"
    cells = [Cell(text="")]
    cells += [Cell(column.estimates[d]) if d in column.estimates else Cell(text="") for d in datasets]
    by_name = {name: column.estimates.get(f"{TITLES.get(suite, '')} {name}") for name in groups} | {"Mean": column.estimates.get(average)}
    cells += [Cell(mean) if (mean := by_name.get(name)) is not None else Cell(text="") for name in groups]
    return Row(column.heading, cells)


def _notes(tuned: Sequence[Tuned], suite: str) -> list[str]:
    """Return footnotes on splits other than the benchmark's, unequal conditions, and tasks without a result."""
    notes = []
    for dataset in dict.fromkeys(result.dataset for result in tuned):
        if len({result.images for result in tuned if result.dataset == dataset}) > 1:
            notes.append(f"{_title(dataset)}: not all rows were trained and tested on the same images.")
    drawn = sorted({_title(result.dataset) for result in tuned if result.facts.get("split") == "counted"})
    if drawn:
        notes.append(f"Random split by smat, not a published one: {', '.join(drawn)}.")
    if any(result.facts.get("searched") for result in tuned):
        notes.append("Some settings were searched on the validation images of each dataset (tune.search).")
    present = {result.dataset for result in tuned}
    missing = [task.title for task in SUITES.get(suite, ()) if not present & set(task.names)]
    if missing:
        notes.append(f"No result: {', '.join(missing)}; the means of their groups are missing.")
    return notes
