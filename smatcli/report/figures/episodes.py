"""Figures that per-episode results alone allow: scores of the experts, trajectories, trade-off, number of training datasets."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from smatcli.report.figures.curves import Curves, Series, band
from smatcli.report.figures.types import Figure, Heat, Tree
from smatcli.report.results.compare import average_difference
from smatcli.report.results.groups import DOMAINS, METHOD_LABELS, Column, Group
from smatcli.report.results.runs import Run, section
from smatcli.report.tables.costs import size_of
from smatcli.runs.statistics import Estimate, average

MOST_HEATS = 4  # of a group; more are for the CSV of the results


def group_figures(group: Group, baselines: Sequence[Column], lines: list[str]) -> list[Figure]:
    """All of them for one group; `lines` say what was left out."""
    figures: list[Figure | None] = [*scores(group, lines), trajectories(group)]
    figures += [trade_off(group, sweep) for sweep in group.sweeps]
    figures += [training_datasets(group, baseline) for baseline in baselines]
    figures.append(parameter_counts(group))
    return [figure for figure in figures if figure is not None]


def scores(group: Group, lines: list[str]) -> Iterator[Heat]:
    """Fig. 5c: the mean scores of the router by dataset, datasets in the order of a dendrogram (average linkage, Euclidean)."""
    chosen: dict[str, Column] = {}
    for column in group.columns:
        if (column.evaluation.run.experts or 0) > 1:
            chosen.setdefault(column.evaluation.run.name, column)
    for column in list(chosen.values())[:MOST_HEATS]:
        means = {d: a.mean(0) for d, a in _records(column, "alpha").items() if a.ndim == 2}
        if len(means) > 1:
            yield _scores(group, column, means)
    if len(chosen) > MOST_HEATS:
        lines.append(f"scores of the experts are drawn for {MOST_HEATS} of {len(chosen)} runs ({group.brief}); name fewer to see others")


def _scores(group: Group, column: Column, means: dict[str, np.ndarray]) -> Heat:
    domains = {key.dataset: key.domain for key in column.estimates}
    names, values = list(means), np.stack(list(means.values())).astype(float)
    order, tree = dendrogram(values)
    rows = [f"{names[i]}{' (OOD)' if domains.get(names[i]) == 'OOD' else ''}" for i in order]
    label = column.label.split(" + ")[0]
    caption = (
        f"Mean scores of the router by dataset, {label}, {group.about}; similar datasets beside each other "
        "(average linkage of Euclidean distances)"
    )
    experts = [str(m + 1) for m in range(values.shape[1])]
    return Heat(f"scores-{label}-{group.tag}", f"Scores of the experts: {label} ({group.brief})", caption, rows, experts, values[order],
                "Expert", "", 1.0, 2, tree)  # fmt: skip


def dendrogram(values: np.ndarray) -> tuple[list[int], Tree]:
    """An order of the rows of `values` [n, M], and the brackets that join them; a tree needs three rows."""
    if len(values) < 3:
        return list(range(len(values))), []
    from scipy.cluster.hierarchy import dendrogram as brackets
    from scipy.cluster.hierarchy import linkage

    made = brackets(linkage(values, "average", optimal_ordering=True), no_plot=True)
    # scipy puts the leaves at 5, 15, 25, ...
    places = [[(y - 5) / 10 for y in four] for four in made["icoord"]]
    return [int(i) for i in made["leaves"]], list(zip(places, made["dcoord"], strict=True))


def trajectories(group: Group) -> Curves | None:
    """Query accuracy after every gradient step of an adaptation, where it was recorded (`smat eval --trajectory`)."""
    panels: dict[str, list[Series]] = {}
    for column in group.everything:
        if column.evaluation.adapt.split("-")[0] in ("proto", "flip", "exhaustive"):
            continue
        found = _records(column, "trajectory")
        for domain, title in DOMAINS.items():
            keys = [key for key in column.estimates if key.domain == domain]
            if keys and all(key.dataset in found for key in keys):
                panels.setdefault(title, []).append(Series(column.label, _mean_path([found[key.dataset] for key in keys])))
    caption = f"Query accuracy after every step of the adaptation, {group.about}, mean over datasets, 95% bands; never used for choosing"
    heading = f"Accuracy while adapting ({group.brief})"
    shown = band(max(map(len, panels.values()), default=0))
    return Curves(f"trajectory-{group.tag}", heading, caption, "Gradient steps", "Accuracy (%)", panels, shown) if panels else None


def _mean_path(parts: Sequence[np.ndarray]) -> list[tuple[float, Estimate]]:
    points = []
    for t in range(max(a.shape[1] for a in parts)):
        estimates = []
        for a in parts:
            values = a[:, min(t, a.shape[1] - 1)].astype(float)
            half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else math.nan
            estimates.append(Estimate(float(values.mean()), half))
        points.append((float(t), average(estimates)))
    return points


def _records(column: Column, key: str) -> dict[str, np.ndarray]:
    """A column of `results.h5` by dataset; empty where there is none (what is damaged is told elsewhere)."""
    from smatcli.safe import hdf5 as safe_hdf5

    try:
        with safe_hdf5.opened(column.evaluation.folder / "results.h5") as file:
            return {name: safe_hdf5.array(group, key) for name, group in safe_hdf5.groups(file) if key in group}
    except safe_hdf5.WRONG:
        return {}


def trade_off(group: Group, sweep: Path) -> Curves | None:
    """Fig. 3a's ratio: the average out of domain over that in domain, against the sparsity target."""
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
    caption = (
        f"Average accuracy out of domain divided by that in domain, against the sparsity target, {sweep.name}, {group.about}, 95% intervals"
    )
    heading = f"Trade-off between domains: {sweep.name} ({group.brief})"
    y_label = "OOD / ID accuracy"
    return Curves(
        f"tradeoff-{sweep.name}-{group.tag}", heading, caption, "Sparsity target τ", y_label, {"": list(lines.values())}, scale=1.0
    )


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """The quotient of two independent estimates; its half-width to first order."""
    mean = above.mean / below.mean
    return Estimate(mean, abs(mean) * float(np.hypot(above.half_width / max(above.mean, 1e-12), below.half_width / below.mean)))


def trained_on(column: Column) -> int:
    """Datasets of the meta-training, 0 where there was none."""
    run = column.evaluation.run
    return 0 if run.method == "pretrained" else len(section(run.recipe, "data").get("train") or [])


def training_datasets(group: Group, baseline: Column) -> Curves | None:
    """Fig. 4: gain over `baseline` against the number of datasets that a run was trained on; None without two numbers of one method."""
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
    caption = f"Accuracy relative to {baseline.label}, against the number of datasets of meta-training, {group.about}, 95% intervals"
    heading = f"Number of training datasets ({group.brief})"
    stem, y_label = f"datasets-{group.tag}-over-{baseline.label}", f"Gain over {baseline.label} (points)"
    return Curves(stem, heading, caption, "Training datasets", y_label, panels) if panels else None


def parameter_counts(group: Group) -> Curves | None:
    """Fig. 6: average accuracy against the parameters that prediction needs; None unless these differ."""
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
        f"Average accuracy against the parameters that prediction needs (backbone; with experts also the dense difference and the non-zero "
        f"mask entries), {group.about}, 95% intervals"
    )
    heading = f"Accuracy against parameters ({group.brief})"
    stem, x_label = f"parameters-{group.tag}", "Parameters (millions)"
    every = [x for lines in panels.values() for line in lines for x, _ in line.points]
    far = bool(every) and max(every) > 8 * min(every)
    return Curves(stem, heading, caption, x_label, "Accuracy (%)", panels, log_x=far) if panels else None


def needed(run: Run) -> int | None:
    """Parameters that prediction needs; None where the checkpoint does not tell."""
    size = size_of(run)
    if size is None or not size.backbone:
        return None
    if run.experts is None:
        return size.backbone
    return None if size.nonzero is None else 2 * size.backbone + size.nonzero
