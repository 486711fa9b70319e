"""Figures of how alike the experts of a layer are (MLAE, Figs. 4 and 5): layer by layer, and over the model."""

import math
from collections.abc import Sequence

import numpy as np

from smatcli.report.curves import Curves, Series
from smatcli.report.fig_read import Found
from smatcli.report.fig_types import Bars, Figure
from smatcli.report.runs import section
from smatcli.report.statistics import UNKNOWN, Estimate


def similarity_figures(found: Sequence[Found]) -> list[Figure]:
    """Of the analyses `similarity`: curves over the layers (a panel a dataset), and bars of the model; runs that differ in their seed
    alone are averaged."""
    by_dataset: dict[str, dict[str, list[dict[str, np.ndarray]]]] = {}
    for f in found:
        if f.analysis.kind == "similarity":
            label, dataset = without_dataset(f)
            by_dataset.setdefault(dataset, {}).setdefault(label, []).append(f.analysis.groups["all"])
    if not by_dataset:
        return []
    said = "of the experts (LoRA: of the rank-one parts) of a layer, all pairs; 0 is orthogonal"
    panels = {dataset if len(by_dataset) > 1 else "": _lines(runs) for dataset, runs in by_dataset.items()}
    curves = Curves(
        "similarity-layers", "Similarity of experts by layer", f"Mean |cosine| {said}", "Layer with experts", "Mean |cosine|", panels,
        "none", 1.0,
    )  # fmt: skip
    labels = list(dict.fromkeys(label for runs in by_dataset.values() for label in runs))
    series = []
    for dataset, runs in by_dataset.items():
        for i, name in enumerate(("cosine", "|cosine|")):
            values = [_mean(np.array([run["model"][i] for run in runs.get(label, [])])) for label in labels]
            series.append((f"{dataset}: {name}" if len(by_dataset) > 1 else name, values))
    title = "Similarity of experts over the model"
    return [curves, Bars("similarity-model", title, f"Mean cosine {said}, over all layers", "Mean cosine", labels, series, 1.0)]


def without_dataset(found: Found) -> tuple[str, str]:
    """The label of a tuned run without its dataset, and the dataset."""
    dataset = str(section(found.run.recipe, "data").get("dataset", ""))
    return found.label.removesuffix(f" ({dataset})"), dataset


def _lines(by_label: dict[str, list[dict[str, np.ndarray]]]) -> list[Series]:
    lines = []
    for label, runs in by_label.items():
        length = min(len(run["absolute"]) for run in runs)
        values = np.stack([run["absolute"][:length] for run in runs])
        lines.append(Series(label, [(i + 1.0, _mean(values[:, i])) for i in range(length) if np.isfinite(values[:, i]).all()]))
    return lines


def _mean(values: np.ndarray) -> Estimate:
    if not len(values) or not np.isfinite(values).all():
        return UNKNOWN
    return Estimate(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)
