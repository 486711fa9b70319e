"""Figures of the experts: capacity by layer and depth, overlap of masks, agreement of gradients, flip searches."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smatcli.report.figures.analyses import RunAnalysis, sets
from smatcli.report.figures.curves import Curves, Series, band, mean_by_step
from smatcli.report.figures.types import Bars, Figure, HeatMap
from smatcli.report.results.groups import DOMAINS
from smatcli.runs.statistics import UNKNOWN, Estimate

LAYERS = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm", "q", "k", "v", "qkv", "proj", "fc1", "fc2", "layer_scale", "head")
PAIRINGS = {"Same dataset": True, "Different datasets": False}


def mask_figures(analyses: Sequence[RunAnalysis], points: set[Path]) -> list[Figure]:
    """Figs. 5a, 5b and 5d, from the analyses `masks`."""
    figures: list[Figure] = []
    chosen = [f for f in analyses if f.analysis.kind == "masks"]
    for end, title, some in sets(chosen, points):
        figures += [_by_layer(end, title, some), _by_depth(end, title, some)]
        figures += [_overlap(f) for f in some if not end and len(f.analysis.groups["all"]["overlap"]) > 1]
    return figures


def _share(item: RunAnalysis, wanted: np.ndarray) -> Estimate:
    """Return the share of the parameters in the segments `wanted` (bool) that an expert keeps: mean and standard deviation over experts."""
    arrays = item.analysis.groups["all"]
    size = arrays["size"][wanted].sum()
    shares = arrays["nonzeros"][:, wanted].sum(1) / max(size, 1)
    return Estimate(float(shares.mean()), float(shares.std(ddof=1)) if len(shares) > 1 else 0.0) if size else UNKNOWN


def _by_layer(end: str, title: str, analyses: Sequence[RunAnalysis]) -> Bars:
    present = {str(layer) for f in analyses for layer in f.analysis.groups["all"]["layer"]}
    layers = [name for name in LAYERS if name in present] + sorted(present - set(LAYERS))
    series = [(f.label, [_share(f, f.analysis.groups["all"]["layer"] == layer) for layer in layers]) for f in analyses]
    caption = "Share of the parameters of each layer type that an expert keeps: mean and standard deviation over experts"
    return Bars(f"capacity-layer{end}", f"Capacity of the experts by layer type{title}", caption, "Kept parameters (%)", layers, series)


def _by_depth(end: str, title: str, analyses: Sequence[RunAnalysis]) -> Curves:
    lines = []
    for f in analyses:
        depth = f.analysis.groups["all"]["depth"]
        places = [int(d) for d in np.unique(depth) if d >= 0]
        lines.append(Series(f.label, [(d + 1.0, _share(f, depth == d)) for d in places]))
    caption = "Share of the parameters of each transformer block that an expert keeps: mean and standard deviation over experts"
    heading = f"Capacity of the experts by depth{title}"
    return Curves(f"capacity-depth{end}", heading, caption, "Block", "Kept parameters (%)", {"": lines}, band(len(analyses)))


def _overlap(item: RunAnalysis) -> HeatMap:
    overlap = item.analysis.groups["all"]["overlap"]
    names = [str(m + 1) for m in range(len(overlap))]
    caption = f"Overlap of the experts' masks, |z_i and z_j| / |z_i or z_j|, {item.label}"
    heading = f"Overlap of masks: {item.label}"
    return HeatMap(f"overlap-{item.label}", heading, caption, names, names, overlap, "Expert", "Expert")


def gradient_figures(analyses: Sequence[RunAnalysis], points: set[Path]) -> list[Figure]:
    """Fig. 3b, from the analyses `gradients`: by part of each model, between models, and against the sparsity target of a sweep."""
    figures: list[Figure] = []
    chosen = [f for f in analyses if f.analysis.kind == "gradients"]
    for end, title, some in sets(chosen, points):
        if end:
            figures += [_against_tau(end, title, some)]
            continue
        for f in some:
            parts = [str(p) for p in f.analysis.groups["all"]["part"]]
            if len(parts) > 1:
                caption = f"{_ABOUT}, {f.label}: all parameters (theta), the shared ones (delta), and those of each expert. {_SPREAD}"
                series = [(name, [_cosine(f, p, same) for p in parts]) for name, same in PAIRINGS.items()]
                figures.append(Bars(f"alignment-{f.label}", f"Agreement of gradients: {f.label}", caption, "Cosine", parts, series, 1.0))
        if len(some) > 1:
            series = [(name, [_cosine(f, _trained(f), same) for f in some]) for name, same in PAIRINGS.items()]
            labels = [f.label for f in some]
            caption = f"{_ABOUT}, of the trained vector (theta_delta for a model with experts, else theta). {_SPREAD}"
            figures.append(Bars("alignment", "Agreement of gradients between tasks", caption, "Cosine", labels, series, 1.0))
    return [figure for figure in figures if not isinstance(figure, Curves) or figure.panels]


_ABOUT = "Mean cosine between the query-loss gradients of two training episodes"
_SPREAD = "Intervals: 95%, jackknife over episodes"


def _trained(item: RunAnalysis) -> str:
    return "delta" if "delta" in item.analysis.groups["all"]["part"] else "theta"


def _cosine(item: RunAnalysis, part: str, same: bool) -> Estimate:
    arrays = item.analysis.groups["all"]
    place = [str(p) for p in arrays["part"]].index(part)
    names = arrays["dataset"]
    return mean_of_pairs(arrays["cosine"][place].astype(float), (names[:, None] == names[None, :]) == same)


def mean_of_pairs(values: np.ndarray, wanted: np.ndarray) -> Estimate:
    """Return the mean of the finite values [E, E] of the wanted pairs i < j, with the 95% half-width of the jackknife over the E items."""
    kept = np.triu(wanted, 1) & np.isfinite(values)
    count, total = int(kept.sum()), float(values[kept].sum())
    if not count:
        return UNKNOWN
    whole = kept | kept.T
    counts = count - whole.sum(1)
    without = (total - np.where(whole, np.nan_to_num(values), 0.0).sum(1)) / np.maximum(counts, 1)
    touched = whole.any(1)
    n = int(touched.sum())
    if n < 3 or (counts[touched] < 1).any():
        return Estimate(total / count, math.nan)
    deviations = without[touched] - without[touched].mean()
    return Estimate(total / count, 1.96 * float(np.sqrt((n - 1) / n * (deviations**2).sum())))


def _against_tau(end: str, title: str, analyses: Sequence[RunAnalysis]) -> Curves:
    panels: dict[str, list[Series]] = {}
    for panel, same in PAIRINGS.items():
        lines: dict[str, Series] = {}
        for f in sorted(analyses, key=lambda f: f.run.tau or 0.0):
            parts = [str(p) for p in f.analysis.groups["all"]["part"]]
            experts = [_cosine(f, p, same) for p in parts if p.startswith("expert ")]
            if f.run.tau is None or not experts:
                continue
            means = [e.mean for e in experts if e.known]
            both = {"shared parameters": _cosine(f, _trained(f), same)}
            both["experts, mean"] = Estimate(float(np.mean(means)), math.nan) if means else UNKNOWN
            for name, estimate in both.items():
                label = f"{name}, M = {f.run.experts}"
                if estimate.known:
                    lines.setdefault(label, Series(label)).points.append((f.run.tau, estimate))
        if any(len(line.points) > 1 for line in lines.values()):
            panels[panel] = list(lines.values())
    caption = f"{_ABOUT}, against the sparsity target. {_SPREAD}"
    heading = f"Sparsity target against agreement of gradients{title}"
    return Curves(f"alignment{end}", heading, caption, "Sparsity target τ", "Cosine", panels, scale=1.0)


def search_figures(analyses: Sequence[RunAnalysis], points: set[Path]) -> list[Figure]:
    """Flip searches state by state, from the analyses `flip`."""
    figures: list[Figure] = []
    for end, title, some in sets([f for f in analyses if f.analysis.kind == "flip"], points):
        for protocol in dict.fromkeys(f.protocol for f in some):
            own = [f for f in some if f.protocol == protocol]
            panels: dict[str, list[Series]] = {"Lowest support loss so far": [], "Query accuracy of that state": []}
            for f in own:
                for domain, name in DOMAINS.items():
                    datasets = [d for d in f.analysis.groups if f.domain(d) == domain]
                    for (panel, key), factor in zip(zip(panels, ("lowest", "accuracy"), strict=True), (1.0, 100.0), strict=True):
                        line = mean_by_step([f.analysis.groups[d][key] * factor for d in datasets])
                        if line:
                            panels[panel].append(Series(f"{f.label}, {name.lower()}", line))
            caption = (
                f"Flip search: lowest support loss so far, by evaluated state, and query accuracy of that state, protocol {protocol}, "
                "means over datasets, 95% bands"
            )
            heading = f"Flip search by state ({protocol}){title}"
            labels = dict(zip(panels, ("Cross-entropy (nats)", "Accuracy (%)"), strict=True))
            shown = band(len(own) * len(DOMAINS))
            stem = f"flip-{protocol}{end}"
            figures.append(Curves(stem, heading, caption, "Evaluated states after the router's", "", panels, shown, 1.0, y_labels=labels))
    return figures
