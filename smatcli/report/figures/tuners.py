"""Figures of tuners: similarity of the experts of a layer (MLAE, Figs. 4 and 5), and expert paths (pMoE, Fig. 2)."""

import math
from collections.abc import Sequence

import numpy as np

from smatcli.report.figures.analyses import RunAnalysis
from smatcli.report.figures.curves import Curves, Series
from smatcli.report.figures.types import Bars, Figure, HeatMap
from smatcli.report.results.runs import section
from smatcli.runs.statistics import UNKNOWN, Estimate


def similarity_figures(analyses: Sequence[RunAnalysis]) -> list[Figure]:
    """Return the figures of the analyses `similarity`: curves over the layers, one panel per dataset, and bars for the whole model.

    Runs that differ only in their seed are averaged.
    """
    by_dataset: dict[str, dict[str, list[dict[str, np.ndarray]]]] = {}
    for f in analyses:
        if f.analysis.kind == "similarity":
            label, dataset = without_dataset(f)
            by_dataset.setdefault(dataset, {}).setdefault(label, []).append(f.analysis.groups["all"])
    if not by_dataset:
        return []
    pairs = "of all pairs of experts of a layer (LoRA: of its rank-one parts); 0 is orthogonal"
    panels = {dataset if len(by_dataset) > 1 else "": _lines(runs) for dataset, runs in by_dataset.items()}
    curves = Curves(
        "similarity-layers", "Similarity of experts by layer", f"Mean |cosine| {pairs}", "Layer with experts", "Mean |cosine|", panels,
        "none", 1.0,
    )  # fmt: skip
    labels = list(dict.fromkeys(label for runs in by_dataset.values() for label in runs))
    series = []
    for dataset, runs in by_dataset.items():
        for i, name in enumerate(("cosine", "|cosine|")):
            values = [_mean(np.array([run["model"][i] for run in runs.get(label, [])])) for label in labels]
            series.append((f"{dataset}: {name}" if len(by_dataset) > 1 else name, values))
    title = "Similarity of experts over the model"
    return [curves, Bars("similarity-model", title, f"Mean cosine {pairs}, over all layers", "Mean cosine", labels, series, 1.0)]


def without_dataset(item: RunAnalysis) -> tuple[str, str]:
    """Split the label of a tuned run into the label without the dataset, and the dataset."""
    dataset = str(section(item.run.recipe, "data").get("dataset", ""))
    return item.label.removesuffix(f" ({dataset})"), dataset


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


# Dataset -> arrays of each run. Entry [l, k, j] of `weights` and `deviation` [layers, K, K]: expert j's prompts in those of expert k.
Paths = dict[str, list[dict[str, np.ndarray]]]


def path_figures(analyses: Sequence[RunAnalysis]) -> list[Figure]:
    """Return the figures of the analyses `paths`: curves of each expert's weight, one panel per dataset, and a heat map of all pairs.

    Each tuner has its own figures; runs that differ only in their seed are averaged.
    """
    by_label: dict[str, Paths] = {}
    for f in [f for f in analyses if f.analysis.kind == "paths"]:
        own = by_label.setdefault(without_dataset(f)[0], {})
        for dataset, arrays in f.analysis.groups.items():
            own.setdefault(dataset, []).append(arrays)
    figures: list[Figure] = []
    for label, datasets in by_label.items():
        figures += _figures(label, {dataset: _same_experts(runs) for dataset, runs in datasets.items()})
    return figures


def _same_experts(runs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Return the runs that have the same experts and layers as the first run."""
    first = runs[0]
    return [r for r in runs if r["weights"].shape == first["weights"].shape and list(r["experts"]) == list(first["experts"])]


def _figures(label: str, datasets: Paths) -> list[Figure]:
    panels, rows, values = {}, [], []
    for dataset, runs in datasets.items():
        names = [str(n) for n in runs[0]["experts"]]
        weights = np.mean([run["weights"] for run in runs], 0)
        deviation = np.mean([run["deviation"] for run in runs], 0)
        panels[dataset] = [Series(name, _points(weights.mean(1)[:, j], deviation[:, :, j].mean(1))) for j, name in enumerate(names)]
        for k, name in enumerate(names):
            for j, other in enumerate(names):
                rows.append(f"{dataset}: {name} from {other}" if len(datasets) > 1 else f"{name} from {other}")
                values.append(weights[:, k, j])
    if not panels:
        return []
    most = max(len(runs) for runs in datasets.values())
    caption = "Weight of each expert's prompts in the prompts of a layer: mean over the receiving experts and over test images"
    caption += ", with the standard deviation over images" + (f"; mean of {most} seeds" if most > 1 else "")
    figures: list[Figure] = [
        Curves(f"paths-{label}", f"Expert paths: {label}", caption, "Layer", "Weight (%)", panels, "band"),
    ]
    columns = [str(i + 1) for i in range(len(values[0]))]
    if all(len(v) == len(columns) for v in values):
        about = f"Weight of an expert's prompts (from) in the prompts of each expert, by layer, {label}"
        heading = f"Weights between experts: {label}"
        figures.append(HeatMap(f"paths-experts-{label}", heading, about, rows, columns, np.array(values), "Layer", "Expert"))
    return figures


def _points(weights: np.ndarray, spread: np.ndarray) -> list[tuple[float, Estimate]]:
    return [(i + 1.0, Estimate(float(w), float(s))) for i, (w, s) in enumerate(zip(weights, spread, strict=True))]
