"""Figures of pMoE's expert paths (Fig. 2 of the paper): which expert's prompts are used, layer by layer and dataset by dataset."""

from collections.abc import Sequence

import numpy as np

from smatcli.report.curves import Curves, Series
from smatcli.report.fig_read import Found
from smatcli.report.fig_types import Figure, Heat
from smatcli.report.statistics import Estimate


def path_figures(found: Sequence[Found]) -> list[Figure]:
    """Of the analyses `paths`: curves of the weight on each expert (a panel a dataset), and a heat map of what each takes from each."""
    figures: list[Figure] = []
    for f in [f for f in found if f.analysis.kind == "paths"]:
        panels, rows, values = {}, [], []
        for dataset, arrays in f.analysis.groups.items():
            names = [str(n) for n in arrays["experts"]]
            weights, deviation = arrays["weights"], arrays["deviation"]  # [layers, K, K]: expert, from expert
            lines = []
            for j, name in enumerate(names):
                spread = deviation[:, :, j].mean(1)
                points = [
                    (i + 1.0, Estimate(float(w), float(s))) for i, (w, s) in enumerate(zip(weights.mean(1)[:, j], spread, strict=True))
                ]
                lines.append(Series(name, points))
            panels[dataset] = lines
            for k, name in enumerate(names):
                for j, other in enumerate(names):
                    rows.append(f"{dataset}: {name} from {other}" if len(f.analysis.groups) > 1 else f"{name} from {other}")
                    values.append(weights[:, k, j])
        if not panels:
            continue
        caption = "Weight of each expert's prompts in the prompts of a layer: mean over the experts that take them and over test images"
        caption += ", with the deviation over images"
        figures.append(Curves(f"paths-{f.label}", f"Expert paths: {f.label}", caption, "Layer", "Weight (%)", panels, "band"))
        columns = [str(i + 1) for i in range(len(values[0]))]
        if all(len(v) == len(columns) for v in values):
            said = f"Share of each expert's prompts in those that an expert is given, {f.label}"
            heading = f"What experts take from each other: {f.label}"
            figures.append(Heat(f"paths-experts-{f.label}", heading, said, rows, columns, np.array(values), "Layer", "Expert"))
    return figures
