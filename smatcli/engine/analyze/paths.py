"""Analysis `paths` of pMoE: weights between the prompts of all pairs of experts, layer by layer (pMoE, Fig. 2)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError
from smatcli.runs.analysis import Analysis, texts
from smatcli.tuning.pmoe import Pmoe

if TYPE_CHECKING:
    from smatcli.engine.analyze.tuned_subject import TunedSubject

HEADER = ["dataset", "layer", "expert", "takes_from", "weight", "deviation", "path"]


def settings(subject: "TunedSubject") -> dict[str, Any]:
    """Return the settings that identify the analysis."""
    return subject.settings(batches="test")


def compute(subject: "TunedSubject") -> Analysis:
    """Compute the analysis of a pMoE run. Raises UserError for a run of another tuner."""
    tuner = subject.tuner
    if not isinstance(tuner, Pmoe):
        raise UserError(f"{subject.run}: paths needs a run of pmoe, this is {subject.recipe.tuner.name}")
    backbones = [subject.recipe.backbone, *getattr(subject.recipe.tuner, "experts", [])]
    batches = {name: subject.batches(name) for name in subject.tasks}
    return path_analysis(tuner, batches, backbones, settings(subject))


def expert_names(configs: Sequence[BackboneConfig]) -> list[str]:
    """Return a short name for each expert: the file or run of its weights, else its timm name; equal names are numbered."""
    names = [c.name if c.weights in ("timm", "none") else Path(c.weights).stem for c in configs]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def path_weights(tuner: Pmoe, batches: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Return mean and standard deviation over images of the dispatch weights [layers, K, K] (means over prompts), and the image count.

    Entry [k, j] is the weight of expert j's prompts in those of expert k; rows sum to 1.
    """
    parts = [tuner.paths(images).float().mean(3).permute(1, 0, 2, 3).double().cpu() for images in batches]
    each = torch.cat(parts)
    deviation = each.std(0) if len(each) > 1 else torch.zeros_like(each[0])
    return {"weights": each.mean(0).numpy(), "deviation": deviation.numpy(), "images": np.array(len(each))}


def path_analysis(
    tuner: Pmoe, datasets: Mapping[str, Iterable[Tensor]], experts: Sequence[BackboneConfig], settings: dict[str, Any]
) -> Analysis:
    """Compute the analysis from batches of normalised images [B, 3, H, W] of each dataset, on the tuner's device.

    `experts` are all backbones of the recipe; `settings` identify the analysis.
    """
    names = expert_names(experts)
    analysis = Analysis("paths", "paths", settings)
    lines = [HEADER]
    for dataset, batches in datasets.items():
        arrays = path_weights(tuner, batches)
        analysis.groups[dataset] = {**arrays, "experts": texts(names)}
        analysis.attributes[dataset] = {"images": int(arrays["images"])}
        lines += _lines(dataset, names, arrays)
    analysis.tables[""] = lines
    return analysis


def _lines(dataset: str, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Return a CSV row for each layer and pair of experts; the column `path` is 1 for the expert with the largest weight."""
    lines = []
    for layer, (weights, deviation) in enumerate(zip(arrays["weights"], arrays["deviation"], strict=True)):
        for k, row in enumerate(weights):
            for j, weight in enumerate(row):
                chosen = str(int(j == int(row.argmax())))
                lines.append([dataset, str(layer + 1), names[k], names[j], f"{weight:.6f}", f"{deviation[k, j]:.6f}", chosen])
    return lines
