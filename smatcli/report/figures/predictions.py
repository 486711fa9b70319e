"""Figures of predictions (reliability, calibration error, confusion, most confused pairs) and of the features of one episode."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smatcli.report.figures.analyses import RunAnalysis, sets
from smatcli.report.figures.curves import Curves, Series
from smatcli.report.figures.types import Bars, ConfusedClasses, ConfusedPair, Figure, HeatMap, Scatter
from smatcli.report.results.groups import DOMAINS
from smatcli.runs.statistics import UNKNOWN, Estimate, reliability

MOST_CLASSES = 20  # most classes of a readable confusion matrix
MOST_CONFUSIONS = 4  # confusion matrices per run, for the datasets with the lowest accuracy
FEWEST = 10  # queries that a bin needs to be drawn
PICTURES = 12  # approximate number of pairs in one figure


def prediction_figures(analyses: Sequence[RunAnalysis], points: set[Path]) -> list[Figure]:
    """Calibration of all runs, and confused pairs and confusion matrices (first adaptation) of each, from the analyses `predictions`."""
    figures: list[Figure] = []
    for end, title, some in sets([f for f in analyses if f.analysis.kind == "predictions"], points):
        for protocol in dict.fromkeys(f.protocol for f in some):
            own = [f for f in some if f.protocol == protocol]
            figures += [_reliability(end, title, protocol, own), _errors(end, title, protocol, own)]
            seen: set[Path] = set()
            for f in own if not end else []:
                figures += [*_pairs(f), *(_confusion(f) if f.run.path not in seen else [])]
                seen.add(f.run.path)
    return figures


def _correct(item: RunAnalysis, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = item.analysis.groups[dataset]
    return arrays["confidence"], (arrays["label"] == arrays["predicted"]).astype(float)


def _reliability(end: str, title: str, protocol: str, analyses: Sequence[RunAnalysis]) -> Curves:
    panels: dict[str, list[Series]] = {}
    for domain, name in DOMAINS.items():
        lines = []
        for f in analyses:
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


def _errors(end: str, title: str, protocol: str, analyses: Sequence[RunAnalysis]) -> Bars:
    datasets = list(dict.fromkeys(d for f in analyses for d in sorted(f.analysis.groups, key=f.domain)))
    series = []
    for f in analyses:
        errors = [reliability(*_correct(f, d)).error if d in f.analysis.groups else None for d in datasets]
        series.append((f.label, [UNKNOWN if e is None else Estimate(e, math.nan) for e in errors]))
    caption = f"Expected calibration error (15 equal bins) by dataset, protocol {protocol}; in-domain datasets first"
    heading = f"Calibration error by dataset ({protocol}){title}"
    return Bars(f"calibration-{protocol}{end}", heading, caption, "Calibration error (points)", datasets, series)


def _pairs(item: RunAnalysis) -> list[Figure]:
    datasets = {name: arrays for name, arrays in item.analysis.groups.items() if len(arrays["pair"])}
    each = max(1, PICTURES // max(1, len(datasets)))
    pairs = []
    for name, arrays in datasets.items():
        names = arrays["class_names"]
        for i, (a, b) in enumerate(arrays["pair"][:each]):
            numbers = (int(arrays["pair_count"][i]), int(arrays["pair_asked"][i]))
            pairs.append(ConfusedPair(name, str(names[a]), str(names[b]), *numbers, arrays["pair_thumbnails"][i]))
    if not pairs:
        return []
    caption = (
        f"The most confused pairs of classes of each dataset, {item.label}, protocol {item.protocol}: "
        "number of queries of either class that were predicted as the other, of all their queries in episodes that contain both"
    )
    heading = f"Most confused classes: {item.label} ({item.protocol})"
    return [ConfusedClasses(f"confused-{item.label}-{item.protocol}", heading, caption, pairs)]


def _confusion(item: RunAnalysis) -> list[Figure]:
    figures: list[Figure] = []
    readable = [name for name, arrays in item.analysis.groups.items() if len(np.unique(arrays["label"])) <= MOST_CLASSES]
    for dataset in sorted(readable, key=lambda name: _correct(item, name)[1].mean())[:MOST_CONFUSIONS]:
        arrays = item.analysis.groups[dataset]
        classes = np.unique(arrays["label"])
        rates = confusion(arrays["episode"], arrays["label"], arrays["predicted"], classes)
        names = [str(arrays["class_names"][c]) for c in classes]
        caption = (
            f"Confusion on {dataset}, {item.label}, protocol {item.protocol}: share (%) of the queries of a class (row) predicted as "
            "another class (column), in episodes that contain both; empty if there is no such episode"
        )
        heading = f"Confusion on {dataset}: {item.label} ({item.protocol})"
        stem = f"confusion-{item.label}-{dataset}-{item.protocol}"
        figures.append(HeatMap(stem, heading, caption, names, names, rates, "Predicted class", "Class", 100.0, 0))
    return figures


def confusion(episode: np.ndarray, label: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return [C, C]: share of the queries of class i predicted as class j, in episodes with both classes; NaN if there are none."""
    count, asked = (np.zeros((len(classes), len(classes))) for _ in range(2))
    truth, prediction = np.searchsorted(classes, label), np.searchsorted(classes, predicted)
    for number in np.unique(episode):
        own = episode == number
        sizes = np.bincount(truth[own], minlength=len(classes))
        asked += sizes[:, None] * (sizes > 0)[None, :]
        np.add.at(count, (truth[own], prediction[own]), 1)
    return np.where(asked > 0, count / np.maximum(asked, 1), np.nan)


def feature_figures(analyses: Sequence[RunAnalysis]) -> list[Figure]:
    """Support and query features of one episode on two principal axes, from the analyses `features`."""
    figures: list[Figure] = []
    for f in analyses:
        for dataset, arrays in f.analysis.groups.items() if f.analysis.kind == "features" else []:
            about = f.analysis.attributes[dataset]
            titles = [
                f"{stage}: accuracy {100 * right:.0f}%, variance {100 * share.sum():.0f}%"
                for stage, right, share in zip(arrays["stage"], arrays["accuracy"], arrays["explained"], strict=True)
            ]
            panels = {f"{str(t)[0].upper()}{str(t)[1:]}": points for t, points in zip(titles, arrays["coordinates"], strict=True)}
            caption = (
                f"Episode {about['index']} of {dataset}, {f.label}, protocol {f.protocol}: support (filled) and query (open) on the first "
                "two principal axes of the unit-length features; query accuracy, and the share of the variance on the two axes"
            )
            heading = f"Features of an episode: {dataset}, {f.label}"
            names = [str(name) for name in arrays["class_names"]]
            stem = f"features-{f.label}-{dataset}-{f.protocol}"
            figures.append(Scatter(stem, heading, caption, names, panels, arrays["label"], arrays["is_query"].astype(bool)))
    return figures
