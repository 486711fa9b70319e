"""Tables of tuning runs (`tune.json`): a row a tuner, a column a task, VTAB-1k's groups and their mean; published numbers below."""

import math
from collections.abc import Mapping, Sequence

from smatcli.data.catalogue.suites import SUITES, TITLES, grouped, means, task_of
from smatcli.report.results.published import Published
from smatcli.report.results.runs import Run
from smatcli.report.results.tuning_runs import Tuned
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.report.tables.tuning_pairs import Trial, pairs_table
from smatcli.runs.statistics import Estimate

CAPTIONS = {
    "vtab": "VTAB-1k: 1,000 training images a task (800 to train and 200 to choose by, then all of them); the layout of MLAE's Table 1 and "
    "pMoE's Table 1. Mean: of the means of the three groups",
    "fgvc": "FGVC: the layout of pMoE's Table 2. Mean: over the five sets",
    "": "Tuning of single datasets. Mean: over the datasets",
}
METRICS = {"accuracy": "Top-1 accuracy (%)", "auc": "Area under the ROC curve (%)", "per-class": "Mean accuracy of the classes (%)"}


def tuning_tables(tuned: Sequence[Tuned], published: Sequence[Published], digits: int = 1) -> list[Table]:
    """A table for each suite and metric of the results, the datasets of no suite in one of their own."""
    return [_table(suite, metric, own, published, digits) for (suite, metric), own in _by_suite(tuned).items()]


def tuning_pairs(tuned: Sequence[Tuned], baselines: Sequence[str] = (), digits: int = 1) -> list[Table]:
    """The paired differences beside each table of `tuning_tables`, over the seeds that two rows share."""
    found = []
    for (suite, metric), own in _by_suite(tuned).items():
        trials = [Trial(one.label, one.tuner, one.dataset, one.seed, one.score, one.images) for one in own]
        titles = {d: _title(d) for d in _order(suite, {one.dataset for one in own})}
        wanted = [name for name in baselines if name in {one.label for one in own}]
        stem, heading = f"tuning-pairs-{suite or 'datasets'}-{metric}", f"Paired differences: {TITLES.get(suite, 'tuning')}"
        what = METRICS.get(metric, metric).removesuffix(" (%)")
        found.append(pairs_table(stem, heading, what[:1].lower() + what[1:], trials, wanted, titles, suite, digits))
    return [table for table in found if table is not None]


def tuned_labels(tuned: Sequence[Tuned]) -> list[tuple[str, Run]]:
    """Every run with its row's label, and its dataset where there are several."""
    several = len({one.dataset for one in tuned}) > 1
    return [(f"{one.label} ({one.dataset})" if several else one.label, one.run) for one in tuned]


def _by_suite(tuned: Sequence[Tuned]) -> dict[tuple[str, str], list[Tuned]]:
    found: dict[tuple[str, str], list[Tuned]] = {}
    for one in tuned:
        known = task_of(one.dataset)
        found.setdefault((known[0] if known else "", one.metric), []).append(one)
    return dict(sorted(found.items(), reverse=True))


def _table(suite: str, metric: str, tuned: Sequence[Tuned], published: Sequence[Published], digits: int) -> Table:
    datasets = _order(suite, {one.dataset for one in tuned})
    rows, seeds, singles = [], set(), False
    for label in dict.fromkeys(one.label for one in tuned):
        own = [one for one in tuned if one.label == label]
        by_dataset = {d: [one for one in own if one.dataset == d] for d in datasets}
        estimates = {d: _mean([one.score for one in found]) for d, found in by_dataset.items() if found}
        seeds |= {len(found) for found in by_dataset.values() if found}
        singles |= any(len(found) == 1 for found in by_dataset.values())
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
    caption += "Bold: the highest mean (no test). Parameters: trained, without the head."
    stem, heading = f"tuning-{suite or 'datasets'}-{metric}", f"Tuning: {TITLES.get(suite, 'datasets')}"
    return Table(stem, heading, caption, "Tuner", heads, blocks, families if suite == "vtab" else [], digits, notes, spread="deviation")


def _averages(by_dataset: Mapping[str, Sequence[Tuned]], suite: str) -> dict[str, Estimate]:
    """Means of groups and datasets, with the deviation over seeds where every dataset has the same ones."""
    found = means({d: _mean([one.score for one in own]).mean for d, own in by_dataset.items() if own}, suite)
    seeds = {frozenset(one.seed for one in own) for own in by_dataset.values() if own}
    if len(seeds) > 1:
        return {name: Estimate(value, math.nan) for name, value in found.items()}
    each = [
        means({d: score for d, own in by_dataset.items() for score in [one.score for one in own if one.seed == seed]}, suite)
        for seed in sorted(next(iter(seeds)))
    ]
    return {name: _mean([values[name] for values in each]) for name in found}


def _mean(values: Sequence[float]) -> Estimate:
    """Mean and standard deviation (n - 1) over seeds."""
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    return Estimate(mean, spread)


def _order(suite: str, names: set[str]) -> list[str]:
    """Datasets in the suite's order, others by name."""
    tasks = [name for task in SUITES.get(suite, ()) for name in task.names]
    return sorted(names, key=lambda n: (tasks.index(n) if n in tasks else len(tasks), n))


def _title(dataset: str) -> str:
    known = task_of(dataset)
    return known[1].title if known else dataset


def unused(published: Sequence[Published], tuned: Sequence[Tuned]) -> list[Published]:
    """The published columns that no table of these results shows."""
    names = {one.dataset for one in tuned}
    known = [task_of(name) for name in names]
    suites = {found[0] if found else "" for found in known}
    return [p for p in published if not any(_fits(p, suite, [*names]) for suite in suites)]


def _fits(column: Published, suite: str, datasets: Sequence[str]) -> bool:
    names = set(datasets) | ({f"{TITLES[suite]} average"} if suite else set())
    return bool(names & column.estimates.keys())


def _published(column: Published, datasets: Sequence[str], groups: Sequence[str], suite: str) -> Row:
    average = f"{TITLES.get(suite, '')} average"
    cells = [Cell(text="")]
    cells += [Cell(column.estimates[d]) if d in column.estimates else Cell(text="") for d in datasets]
    known = {name: column.estimates.get(f"{TITLES.get(suite, '')} {name}") for name in groups} | {"Mean": column.estimates.get(average)}
    cells += [Cell(found) if (found := known.get(name)) is not None else Cell(text="") for name in groups]
    return Row(column.heading, cells)


def _notes(tuned: Sequence[Tuned], suite: str) -> list[str]:
    """What a reader must know: other splits than the benchmark's, unequal conditions, tasks without a result."""
    notes = []
    for dataset in dict.fromkeys(one.dataset for one in tuned):
        if len({one.images for one in tuned if one.dataset == dataset}) > 1:
            notes.append(f"{_title(dataset)}: not all rows were trained and tested on the same images.")
    drawn = sorted({_title(one.dataset) for one in tuned if one.facts.get("split") == "counted"})
    if drawn:
        notes.append(f"Split drawn by smat (not a published one): {', '.join(drawn)}.")
    if any(one.facts.get("searched") for one in tuned):
        notes.append("Some settings were searched on the validation images of each dataset (tune.search).")
    there = {one.dataset for one in tuned}
    missing = [task.title for task in SUITES.get(suite, ()) if not there & set(task.names)]
    if missing:
        notes.append(f"Without a result: {', '.join(missing)}; means of groups with such a task are left out.")
    return notes
