"""Figures of pMoE's expert paths (Fig. 2 of the paper): which expert's prompts are used, layer by layer and dataset by dataset."""

from collections.abc import Sequence

import numpy as np

from smatcli.report.curves import Curves, Series
from smatcli.report.fig_read import Found
from smatcli.report.fig_similarity import without_dataset
from smatcli.report.fig_types import Figure, Heat
from smatcli.report.statistics import Estimate

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
