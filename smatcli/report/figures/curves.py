"""Data of curves and gains, without matplotlib: points with intervals, in panels; each is also written as CSV."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from smatcli.report.results.compare import average_difference, difference
from smatcli.report.results.groups import DOMAINS, METHOD_LABELS, Column, ResultGroup
from smatcli.report.results.runs import Run, number, whole
from smatcli.runs.statistics import UNKNOWN, Estimate, average
from smatcli.safe.text import csv_number, write_csv

MOST_BANDS = 5  # lines with a band in one panel; the bands of more would hide each other


def band(lines: int) -> Literal["band", "none"]:
    """Return the interval style `band` for a few lines, `none` for more."""
    return "band" if lines <= MOST_BANDS else "none"


def mean_by_step(parts: Sequence[np.ndarray]) -> list[tuple[float, Estimate]]:
    """Return (step, mean over datasets) for arrays [E, T], one per dataset; a shorter array keeps its last value."""
    points = []
    for step in range(max((values.shape[1] for values in parts), default=0)):
        estimates = []
        for array in parts:
            values = array[:, min(step, array.shape[1] - 1)].astype(float)
            half_width = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else math.nan
            estimates.append(Estimate(float(values.mean()), half_width))
        points.append((float(step), average(estimates)))
    return points


@dataclass
class Series:
    """A line: `points` are (x, estimate), `reference` is one estimate for all x; a `guide` is the ideal for the other lines."""

    label: str
    points: list[tuple[float, Estimate]] = field(default_factory=list)
    reference: Estimate | None = None
    guide: bool = False


@dataclass(frozen=True)
class Curves:
    """Panels (title -> series) over a common x axis; y values are multiplied by `scale`, by default to percent."""

    stem: str
    heading: str
    caption: str
    x_label: str
    y_label: str
    panels: dict[str, list[Series]]
    interval: Literal["bars", "band", "none"] = "bars"
    scale: float = 100.0
    log_x: bool = False
    y_labels: dict[str, str] = field(default_factory=dict)  # labels of single panels, instead of `y_label`

    def csv(self) -> str:
        """Return panel, series, x, mean and half-width as drawn; x is empty for a reference."""
        rows = [["panel", "series", "x", "mean", "half_width"]]
        for panel, lines_of_panel in self.panels.items():
            for line in lines_of_panel:
                points: list[tuple[float | None, Estimate]] = [*line.points] if line.reference is None else [(None, line.reference)]
                for x, e in points:
                    place = "" if x is None else f"{x:.6g}" if x % 1 else str(int(x))
                    rows.append([panel, line.label, place, csv_number(self.scale * e.mean, 4), csv_number(self.scale * e.half_width, 4)])
        return write_csv(rows)


@dataclass(frozen=True)
class Gains:
    """Differences to a baseline: one block of rows per domain, each row (label, whether it is an average, one estimate per series)."""

    stem: str
    heading: str
    caption: str
    baseline: str
    series: list[str]
    blocks: list[tuple[str, list[tuple[str, bool, list[Estimate]]]]]

    def csv(self) -> str:
        """Return domain, dataset, series, difference and half-width in points."""
        lines = [["domain", "dataset", "series", "difference", "half_width"]]
        for domain, rows in self.blocks:
            for label, _, estimates in rows:
                for name, e in zip(self.series, estimates, strict=True):
                    lines.append([domain, label, name, csv_number(100 * e.mean, 4), csv_number(100 * e.half_width, 4)])
        return write_csv(lines)


def tau_curves(group: ResultGroup, sweep: Path) -> Curves | None:
    """Fig. 3a: ID and OOD accuracy against the sparsity target, one line per method, M and adaptation; None for a single target."""
    points = group.sweeps[sweep]
    if len({c.evaluation.run.tau for c in points if c.evaluation.run.tau is not None}) < 2:
        return None
    panels: dict[str, list[Series]] = {}
    for domain, title in DOMAINS.items():
        keys = group.keys(domain, points)
        lines: dict[str, Series] = {}
        for column in sorted(points, key=lambda c: (c.evaluation.run.tau or 0.0, c.evaluation.run.name)):
            estimate, tau = column.average(keys), column.evaluation.run.tau
            if keys and tau is not None and estimate.known:
                name = _line_label(column, points)
                lines.setdefault(name, Series(name)).points.append((tau, estimate))
        series = [lines[name] for name in sorted(lines)]
        for column in group.columns:
            if series and column.evaluation.run.method in ("pretrained", "pmf") and column.average(keys).known:
                series.append(Series(column.label, reference=column.average(keys)))
        if series:
            panels[title] = series
    caption = f"Average accuracy against the sparsity target, {sweep.name}, {group.about}, 95% intervals"
    heading = f"Sparsity target against accuracy: {sweep.name} ({group.brief})"
    return Curves(f"tau-{sweep.name}-{group.tag}", heading, caption, "Sparsity target τ", "Accuracy (%)", panels) if panels else None


def _line_label(column: Column, points: Sequence[Column]) -> str:
    """Return a label such as `SMAT, M = 8 + flip`, with other coordinates of the sweep if there are any."""
    run = column.evaluation.run
    label = METHOD_LABELS.get(run.method, run.method)
    label += f", M = {run.experts}" if run.experts is not None else ""
    label += "".join(f", {k}={v}" for k, v in run.coordinates.items() if k.rsplit(".", 1)[-1] not in ("tau", "experts"))
    return label if column.evaluation.adapt == "proto" else f"{label} + {column.evaluation.adapt}"


def training_curves(stem: str, heading: str, runs: Sequence[tuple[str, Run]]) -> Curves | None:
    """Fig. 1: validation accuracy against the number of tasks seen, in one panel per domain."""
    panels: dict[str, list[Series]] = {title: [] for title in DOMAINS.values()}
    for label, run in runs:
        lines = {title: Series(label) for title in DOMAINS.values()}
        for record in run.valid:
            tasks = whole(record.get("tasks"))
            x = float(record["step"] * run.meta_batch if tasks is None else tasks)
            for domain, estimate in _validation(record, run.ood).items():
                lines[DOMAINS[domain]].points.append((x, estimate))
        for title, line in lines.items():
            if len(line.points) > 1:
                panels[title].append(line)
    kept = {title: series for title, series in panels.items() if series}
    shown = band(max(map(len, kept.values()), default=0))
    caption = "Validation accuracy during meta-training, on fixed episodes of the validation classes"
    caption += ", with 95% bands" if shown == "band" else ""
    return Curves(stem, heading, caption, "Tasks seen", "Validation accuracy (%)", kept, shown) if kept else None


def _validation(record: dict[str, object], ood: frozenset[str]) -> dict[str, Estimate]:
    """Return the averages of one validation by domain: the logged mean and half-width if all its datasets belong to one domain."""
    datasets = record.get("datasets")
    means = {str(n): number(v) for n, v in datasets.items()} if isinstance(datasets, dict) else {}
    mean, half_width = number(record.get("mean")), number(record.get("half_width"))
    domains = {"OOD" if name in ood else "ID" for name in means} or {"ID"}
    if len(domains) == 1:
        return {domains.pop(): UNKNOWN if mean is None else Estimate(mean, UNKNOWN.half_width if half_width is None else half_width)}
    parts = {d: [v for n, v in means.items() if v is not None and (n in ood) == (d == "OOD")] for d in DOMAINS}
    return {d: Estimate(sum(values) / len(values), UNKNOWN.half_width) for d, values in parts.items() if values}


def gains(group: ResultGroup, baseline: Column) -> Gains | None:
    """Return the gains of every other column over `baseline` by dataset, with the average last in each domain."""
    others = [c for c in group.columns if c is not baseline]
    blocks = []
    for domain, title in DOMAINS.items():
        keys = group.keys(domain, [baseline])
        rows = [(group.row_label(k), False, [difference(c, baseline, k).estimate for c in others]) for k in keys]
        if keys:
            rows.append((f"{title} average", True, [average_difference(c, baseline, keys).estimate for c in others]))
            blocks.append((title, rows))
    any_known = any(e.known for _, rows in blocks for _, _, estimates in rows for e in estimates)
    caption = f"Gain over {baseline.label} in points of accuracy, {group.about}, 95% intervals"
    stem, heading = f"gains-{group.tag}-over-{baseline.label}", f"Gains over {baseline.label} by dataset ({group.brief})"
    return Gains(stem, heading, caption, baseline.label, [c.label for c in others], blocks) if any_known else None
