"""Figures of how alike the experts of a layer are (MLAE, Figs. 4 and 5): layer by layer, and over the model."""

import math
from collections.abc import Sequence

import numpy as np

from smatcli.report.curves import Curves, Series
from smatcli.report.fig_read import Found
from smatcli.report.fig_types import Bars, Figure
from smatcli.report.statistics import UNKNOWN, Estimate


def similarity_figures(found: Sequence[Found]) -> list[Figure]:
    """Of the analyses `similarity`: curves over the layers, and bars of the model; runs that differ in their seed are averaged."""
    by_label: dict[str, list[dict[str, np.ndarray]]] = {}
    for f in found:
        if f.analysis.kind == "similarity":
            by_label.setdefault(f.label, []).append(f.analysis.groups["all"])
    if not by_label:
        return []
    lines = []
    for label, runs in by_label.items():
        length = min(len(run["absolute"]) for run in runs)
        values = np.stack([run["absolute"][:length] for run in runs])
        lines.append(Series(label, [(i + 1.0, _mean(values[:, i])) for i in range(length) if np.isfinite(values[:, i]).all()]))
    said = "of the experts (LoRA: of the rank-one parts) of a layer, all pairs; 0 is orthogonal"
    curves = Curves(
        "similarity-layers", "Similarity of experts by layer", f"Mean |cosine| {said}", "Layer with experts", "Mean |cosine|", {"": lines},
        "none", 1.0,
    )  # fmt: skip
    series = [
        (name, [_mean(np.array([run["model"][i] for run in runs])) for runs in by_label.values()])
        for i, name in enumerate(("cosine", "|cosine|"))
    ]
    bars = Bars(
        "similarity-model",
        "Similarity of experts over the model",
        f"Mean cosine {said}, over all layers",
        "Mean cosine",
        list(by_label),
        series,
        1.0,
    )
    return [curves, bars]


def _mean(values: np.ndarray) -> Estimate:
    if not np.isfinite(values).all():
        return UNKNOWN
    return Estimate(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)
