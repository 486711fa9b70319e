"""Figures of predictions: reliability, calibration error, confusion, the most confused pairs; and the features of one episode."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smatcli.report.figures.analyses import Found, sets
from smatcli.report.figures.curves import Curves, Series
from smatcli.report.figures.types import Bars, Clouds, Figure, Heat, Pair, Pictures
from smatcli.report.results.groups import DOMAINS
from smatcli.runs.statistics import UNKNOWN, Estimate, reliability

MOST_CLASSES = 20  # of a confusion matrix that can be read
MOST_CONFUSIONS = 4  # confusion matrices of a run: of the datasets with the lowest accuracy
FEWEST = 10  # queries of a bin that is drawn
PICTURES = 12  # about so many pairs in one figure


def prediction_figures(found: Sequence[Found], points: set[Path]) -> list[Figure]:
    """Calibration of all runs together, confused pairs of each and the confusion under its first adaptation, of `predictions`."""
    figures: list[Figure] = []
    for end, title, some in sets([f for f in found if f.analysis.kind == "predictions"], points):
        for protocol in dict.fromkeys(f.protocol for f in some):
            own = [f for f in some if f.protocol == protocol]
            figures += [_reliability(end, title, protocol, own), _errors(end, title, protocol, own)]
            seen: set[Path] = set()
            for f in own if not end else []:
                figures += [*_pairs(f), *(_confusion(f) if f.run.path not in seen else [])]
                seen.add(f.run.path)
    return figures


def _correct(found: Found, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = found.analysis.groups[dataset]
    return arrays["confidence"], (arrays["label"] == arrays["predicted"]).astype(float)


def _reliability(end: str, title: str, protocol: str, found: Sequence[Found]) -> Curves:
    panels: dict[str, list[Series]] = {}
    for domain, name in DOMAINS.items():
        lines = []
        for f in found:
            parts = [_correct(f, d) for d in f.analysis.groups if f.domain(d) == domain]
            if parts:
                confidence, correct = (np.concatenate(values) for values in zip(*parts, strict=True))
                bins = reliability(confidence, correct)
                half = 1.96 * np.sqrt(bins.accuracy * (1 - bins.accuracy) / bins.count)
                numbers = zip(100 * bins.confidence, bins.accuracy, half, bins.count, strict=True)
                lines.append(Series(f.label, [(float(c), Estimate(float(a), float(h))) for c, a, h, n in numbers if n >= FEWEST]))
        if lines:
            exact = Series("perfectly calibrated", [(0.0, Estimate(0.0, math.nan)), (100.0, Estimate(1.0, math.nan))], guide=True)
            panels[name] = [*lines, exact]
    caption = f"Reliability of the predictions, protocol {protocol}: accuracy of the queries in 15 bins of confidence, 95% intervals"
    caption += f"; bins of fewer than {FEWEST} queries are not drawn"
    heading = f"Reliability ({protocol}){title}"
    return Curves(f"reliability-{protocol}{end}", heading, caption, "Confidence (%)", "Accuracy (%)", panels)


def _errors(end: str, title: str, protocol: str, found: Sequence[Found]) -> Bars:
    datasets = list(dict.fromkeys(d for f in found for d in sorted(f.analysis.groups, key=f.domain)))
    series = []
    for f in found:
        errors = [reliability(*_correct(f, d)).error if d in f.analysis.groups else None for d in datasets]
        series.append((f.label, [UNKNOWN if e is None else Estimate(e, math.nan) for e in errors]))
    caption = f"Expected calibration error (15 equal bins) by dataset, protocol {protocol}; in-domain datasets first"
    heading = f"Calibration error by dataset ({protocol}){title}"
    return Bars(f"calibration-{protocol}{end}", heading, caption, "Calibration error (points)", datasets, series)


def _pairs(found: Found) -> list[Figure]:
    datasets = {name: arrays for name, arrays in found.analysis.groups.items() if len(arrays["pair"])}
    each = max(1, PICTURES // max(1, len(datasets)))
    pairs = []
    for name, arrays in datasets.items():
        names = arrays["class_names"]
        for i, (a, b) in enumerate(arrays["pair"][:each]):
            numbers = (int(arrays["pair_count"][i]), int(arrays["pair_asked"][i]))
            pairs.append(Pair(name, str(names[a]), str(names[b]), *numbers, arrays["pair_thumbnails"][i]))
    if not pairs:
        return []
    caption = (
        f"The most confused pairs of classes of each dataset, {found.label}, protocol {found.protocol}: "
        "queries of either class that were taken for the other, of those asked in episodes that held both"
    )
    heading = f"Most confused classes: {found.label} ({found.protocol})"
    return [Pictures(f"confused-{found.label}-{found.protocol}", heading, caption, pairs)]


def _confusion(found: Found) -> list[Figure]:
    figures: list[Figure] = []
    readable = [name for name, arrays in found.analysis.groups.items() if len(np.unique(arrays["label"])) <= MOST_CLASSES]
    for dataset in sorted(readable, key=lambda name: _correct(found, name)[1].mean())[:MOST_CONFUSIONS]:
        arrays = found.analysis.groups[dataset]
        classes = np.unique(arrays["label"])
        rates = confusion(arrays["episode"], arrays["label"], arrays["predicted"], classes)
        names = [str(arrays["class_names"][c]) for c in classes]
        caption = (
            f"Confusion on {dataset}, {found.label}, protocol {found.protocol}: of the queries of a class (row) in episodes that held the "
            "other class (column), the share (%) that was taken for it; empty where the two never met"
        )
        heading = f"Confusion on {dataset}: {found.label} ({found.protocol})"
        stem = f"confusion-{found.label}-{dataset}-{found.protocol}"
        figures.append(Heat(stem, heading, caption, names, names, rates, "Taken for", "Class", 100.0, 0))
    return figures


def confusion(episode: np.ndarray, label: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[C, C]: of the queries of class i in episodes that held class j, the share that was taken for j; NaN where they never met."""
    count, asked = (np.zeros((len(classes), len(classes))) for _ in range(2))
    truth, said = np.searchsorted(classes, label), np.searchsorted(classes, predicted)
    for number in np.unique(episode):
        own = episode == number
        sizes = np.bincount(truth[own], minlength=len(classes))
        asked += sizes[:, None] * (sizes > 0)[None, :]
        np.add.at(count, (truth[own], said[own]), 1)
    return np.where(asked > 0, count / np.maximum(asked, 1), np.nan)


def feature_figures(found: Sequence[Found]) -> list[Figure]:
    """Support and query of one episode on two principal axes, of the analyses `features`."""
    figures: list[Figure] = []
    for f in found:
        for dataset, arrays in f.analysis.groups.items() if f.analysis.kind == "features" else []:
            about = f.analysis.attributes[dataset]
            titles = [
                f"{stage}: {100 * right:.0f}% right, axes {100 * share.sum():.0f}%"
                for stage, right, share in zip(arrays["stage"], arrays["accuracy"], arrays["explained"], strict=True)
            ]
            panels = {f"{str(t)[0].upper()}{str(t)[1:]}": points for t, points in zip(titles, arrays["coordinates"], strict=True)}
            caption = (
                f"Episode {about['index']} of {dataset}, {f.label}, protocol {f.protocol}: support (filled) and query (open) on the first "
                "two principal axes of the unit-length features; the share of the queries that is right, and of the variance on the axes"
            )
            heading = f"Features of an episode: {dataset}, {f.label}"
            names = [str(name) for name in arrays["class_names"]]
            stem = f"features-{f.label}-{dataset}-{f.protocol}"
            figures.append(Clouds(stem, heading, caption, names, panels, arrays["label"], arrays["is_query"].astype(bool)))
    return figures
