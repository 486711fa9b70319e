"""Figures from per-episode results: router scores, trajectories, trade-off, number of training datasets, parameters."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from smatcli.report.figures.curves import Curves, Series, band, mean_by_step
from smatcli.report.figures.types import Figure, HeatMap, Tree
from smatcli.report.results.compare import average_difference
from smatcli.report.results.groups import DOMAINS, METHOD_LABELS, Column, ResultGroup
from smatcli.report.results.runs import Run, section
from smatcli.report.tables.costs import size_of
from smatcli.runs.statistics import Estimate

MOST_HEATS = 4  # heat maps of router scores per group


def group_figures(group: ResultGroup, baselines: Sequence[Column], lines: list[str]) -> list[Figure]:
    """Return the figures of one group; add a line to `lines` for each one that is skipped."""
    figures: list[Figure | None] = [*scores(group, lines), trajectories(group)]
    figures += [trade_off(group, sweep) for sweep in group.sweeps]
    figures += [training_datasets(group, baseline) for baseline in baselines]
    figures.append(parameter_counts(group))
    return [figure for figure in figures if figure is not None]


def scores(group: ResultGroup, lines: list[str]) -> Iterator[HeatMap]:
    """Fig. 5c: mean router scores by dataset, with the datasets in the order of a dendrogram (average linkage, Euclidean)."""
    chosen: dict[str, Column] = {}
    for column in group.columns:
        if (column.evaluation.run.experts or 0) > 1:
            chosen.setdefault(column.evaluation.run.name, column)
    for column in list(chosen.values())[:MOST_HEATS]:
        means = {d: a.mean(0) for d, a in _records(column, "alpha").items() if a.ndim == 2}
        if len(means) > 1:
            yield _scores(group, column, means)
    if len(chosen) > MOST_HEATS:
        lines.append(
            f"router scores: only the first {MOST_HEATS} of {len(chosen)} runs are drawn ({group.brief}); give fewer runs to see others"
        )


def _scores(group: ResultGroup, column: Column, means: dict[str, np.ndarray]) -> HeatMap:
    domains = {key.dataset: key.domain for key in column.estimates}
    names, values = list(means), np.stack(list(means.values())).astype(float)
    order, tree = dendrogram(values)
    rows = [f"{names[i]}{' (OOD)' if domains.get(names[i]) == 'OOD' else ''}" for i in order]
    label = column.label.split(" + ")[0]
    caption = (
        f"Mean router scores by dataset, {label}, {group.about}; similar datasets are next to each other "
        "(average linkage of Euclidean distances)"
    )
    experts = [str(m + 1) for m in range(values.shape[1])]
    return HeatMap(f"scores-{label}-{group.tag}", f"Router scores: {label} ({group.brief})", caption, rows, experts, values[order],
                "Expert", "", 1.0, 2, tree)  # fmt: skip


def dendrogram(values: np.ndarray) -> tuple[list[int], Tree]:
    """Return an order of the rows of `values` [n, M], and the brackets of their dendrogram (empty for fewer than three rows)."""
    if len(values) < 3:
        return list(range(len(values))), []
    from scipy.cluster.hierarchy import dendrogram as brackets
    from scipy.cluster.hierarchy import linkage

    result = brackets(linkage(values, "average", optimal_ordering=True), no_plot=True)
    # scipy puts the leaves at 5, 15, 25, ...
    places = [[(y - 5) / 10 for y in four] for four in result["icoord"]]
    return [int(i) for i in result["leaves"]], list(zip(places, result["dcoord"], strict=True))


def trajectories(group: ResultGroup) -> Curves | None:
    """Query accuracy after each gradient step of an adaptation, if it was recorded (`smat eval --trajectory`)."""
    panels: dict[str, list[Series]] = {}
    for column in group.everything:
        if column.evaluation.adapt.split("-")[0] in ("proto", "flip", "exhaustive"):
            continue
        paths = _records(column, "trajectory")
        for domain, title in DOMAINS.items():
            keys = [key for key in column.estimates if key.domain == domain]
            if keys and all(key.dataset in paths for key in keys):
                panels.setdefault(title, []).append(Series(column.label, mean_by_step([paths[key.dataset] for key in keys])))
    caption = f"Query accuracy after each step of the adaptation, {group.about}, mean over datasets, 95% bands; not used to choose anything"
    heading = f"Accuracy during adaptation ({group.brief})"
    shown = band(max(map(len, panels.values()), default=0))
    return Curves(f"trajectory-{group.tag}", heading, caption, "Gradient steps", "Accuracy (%)", panels, shown) if panels else None


def _records(column: Column, key: str) -> dict[str, np.ndarray]:
    """Return the column `key` of `results.h5` by dataset; empty if the file cannot be read (the frame reports damaged files)."""
    from smatcli.safe import hdf5 as safe_hdf5

    try:
        with safe_hdf5.opened(column.evaluation.folder / "results.h5") as file:
            return {name: safe_hdf5.array(group, key) for name, group in safe_hdf5.groups(file) if key in group}
    except safe_hdf5.WRONG:
        return {}


def trade_off(group: ResultGroup, sweep: Path) -> Curves | None:
    """Fig. 3a: ratio of the out-of-domain to the in-domain average against the sparsity target."""
    points = group.sweeps[sweep]
    inside, outside = (group.keys(domain, points) for domain in DOMAINS)
    lines: dict[str, Series] = {}
    for column in sorted(points, key=lambda c: (c.evaluation.run.tau or 0.0, c.evaluation.adapt != "proto", c.label)):
        run, (a, b) = column.evaluation.run, (column.average(keys) for keys in (inside, outside))
        if run.tau is not None and inside and outside and a.known and b.known and a.mean > 0:
            label = METHOD_LABELS.get(run.method, run.method) + (f", M = {run.experts}" if run.experts is not None else "")
            label += "" if column.evaluation.adapt == "proto" else f" + {column.evaluation.adapt}"
            lines.setdefault(label, Series(label)).points.append((run.tau, ratio(b, a)))
    if len({x for line in lines.values() for x, _ in line.points}) < 2:
        return None
    caption = f"Ratio of the out-of-domain to the in-domain average against the sparsity target, {sweep.name}, {group.about}, 95% intervals"
    heading = f"Trade-off between domains: {sweep.name} ({group.brief})"
    y_label = "OOD / ID accuracy"
    return Curves(
        f"tradeoff-{sweep.name}-{group.tag}", heading, caption, "Sparsity target τ", y_label, {"": list(lines.values())}, scale=1.0
    )


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """Return the ratio of two independent estimates, with its half-width to first order."""
    mean = above.mean / below.mean
    return Estimate(mean, abs(mean) * float(np.hypot(above.half_width / max(above.mean, 1e-12), below.half_width / below.mean)))


def trained_on(column: Column) -> int:
    """Return the number of datasets used for meta-training, 0 without meta-training."""
    run = column.evaluation.run
    return 0 if run.method == "pretrained" else len(section(run.recipe, "data").get("train") or [])


def training_datasets(group: ResultGroup, baseline: Column) -> Curves | None:
    """Fig. 4: gain over `baseline` against the number of training datasets; None if no method was trained on two different numbers."""
    panels: dict[str, list[Series]] = {}
    columns = [c for c in group.everything if c is not baseline and trained_on(c)]
    for domain, title in DOMAINS.items():
        lines: dict[str, Series] = {}
        shared = [key for key in baseline.estimates if key.domain == domain and all(key in c.estimates for c in columns)]
        for column in sorted(columns, key=trained_on):
            run = column.evaluation.run
            label = METHOD_LABELS.get(run.method, run.method) + (f", M = {run.experts}, τ = {run.tau}" if run.experts is not None else "")
            label += "" if column.evaluation.adapt == "proto" else f" + {column.evaluation.adapt}"
            if shared:
                gain = average_difference(column, baseline, shared).estimate
                lines.setdefault(label, Series(label)).points.append((float(trained_on(column)), gain))
        kept = [line for line in lines.values() if len({x for x, _ in line.points}) > 1]
        if kept:
            panels[title] = kept
    caption = f"Gain over {baseline.label} in points of accuracy against the number of meta-training datasets, {group.about}, 95% intervals"
    heading = f"Number of training datasets ({group.brief})"
    stem, y_label = f"datasets-{group.tag}-over-{baseline.label}", f"Gain over {baseline.label} (points)"
    return Curves(stem, heading, caption, "Training datasets", y_label, panels) if panels else None


def parameter_counts(group: ResultGroup) -> Curves | None:
    """Fig. 6: average accuracy against the number of parameters needed for prediction; None if all runs need the same number."""
    panels: dict[str, list[Series]] = {}
    counts = {c.evaluation.run.path: needed(c.evaluation.run) for c in group.everything}
    for domain, title in DOMAINS.items():
        keys, lines = group.keys(domain, group.everything), dict[str, Series]()
        for column in sorted(group.everything, key=lambda c: counts[c.evaluation.run.path] or 0):
            count, mean = counts[column.evaluation.run.path], column.average(keys)
            if count and keys and mean.known:
                label = METHOD_LABELS.get(column.evaluation.run.method, column.evaluation.run.method)
                label += "" if column.evaluation.adapt == "proto" else f" + {column.evaluation.adapt}"
                lines.setdefault(label, Series(label)).points.append((count / 1e6, mean))
        if len({x for line in lines.values() for x, _ in line.points}) > 1:
            panels[title] = list(lines.values())
    caption = (
        f"Average accuracy against the number of parameters needed for prediction (backbone; with experts also the dense difference and "
        f"the non-zero mask entries), {group.about}, 95% intervals"
    )
    heading = f"Accuracy against parameters ({group.brief})"
    stem, x_label = f"parameters-{group.tag}", "Parameters (millions)"
    every = [x for lines in panels.values() for line in lines for x, _ in line.points]
    far = bool(every) and max(every) > 8 * min(every)
    return Curves(stem, heading, caption, x_label, "Accuracy (%)", panels, log_x=far) if panels else None


def needed(run: Run) -> int | None:
    """Return the number of parameters needed for prediction, or None if the checkpoint does not contain it."""
    size = size_of(run)
    if size is None or not size.backbone:
        return None
    if run.experts is None:
        return size.backbone
    return None if size.nonzero is None else 2 * size.backbone + size.nonzero
