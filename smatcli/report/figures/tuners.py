"""Figures of how alike the experts of a layer are (MLAE, Figs. 4 and 5): layer by layer, and over the model."""

import math
from collections.abc import Sequence

import numpy as np

from smatcli.report.figures.analyses import Found
from smatcli.report.figures.curves import Curves, Series
from smatcli.report.figures.types import Bars, Figure, Heat
from smatcli.report.results.runs import section
from smatcli.runs.statistics import UNKNOWN, Estimate


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


Paths = dict[str, list[dict[str, np.ndarray]]]  # by dataset, of each run: weights and deviation [layers, K, K]: expert, from expert


def path_figures(found: Sequence[Found]) -> list[Figure]:
    """Of the analyses `paths`: curves of the weight on each expert (a panel a dataset), and a heat map of what each takes from each.

    One figure a tuner: runs on other datasets are panels, runs with other seeds are averaged.
    """
    by_label: dict[str, Paths] = {}
    for f in [f for f in found if f.analysis.kind == "paths"]:
        own = by_label.setdefault(without_dataset(f)[0], {})
        for dataset, arrays in f.analysis.groups.items():
            own.setdefault(dataset, []).append(arrays)
    figures: list[Figure] = []
    for label, datasets in by_label.items():
        figures += _figures(label, {dataset: _alike(runs) for dataset, runs in datasets.items()})
    return figures


def _alike(runs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Those with the experts and layers of the first."""
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
    caption = "Weight of each expert's prompts in the prompts of a layer: mean over the experts that take them and over test images"
    caption += ", with the deviation over images" + (f"; mean of {most} seeds" if most > 1 else "")
    figures: list[Figure] = [
        Curves(f"paths-{label}", f"Expert paths: {label}", caption, "Layer", "Weight (%)", panels, "band"),
    ]
    columns = [str(i + 1) for i in range(len(values[0]))]
    if all(len(v) == len(columns) for v in values):
        said = f"Share of each expert's prompts in those that an expert is given, {label}"
        heading = f"What experts take from each other: {label}"
        figures.append(Heat(f"paths-experts-{label}", heading, said, rows, columns, np.array(values), "Layer", "Expert"))
    return figures


def _points(weights: np.ndarray, spread: np.ndarray) -> list[tuple[float, Estimate]]:
    return [(i + 1.0, Estimate(float(w), float(s))) for i, (w, s) in enumerate(zip(weights, spread, strict=True))]
