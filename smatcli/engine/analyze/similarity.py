"""Analysis `similarity` of mlae and lora: similarity of the experts of a layer, or of LoRA's rank-one parts (MLAE, Figs. 4 and 5)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from smatcli.runs.analysis import Analysis, texts

if TYPE_CHECKING:
    from smatcli.engine.analyze.tuned_subject import TunedSubject

HEADER = ["layer", "experts", "cosine", "absolute_cosine", "absolute_cosine_b", "absolute_cosine_a"]


def settings(subject: "TunedSubject") -> dict[str, Any]:
    """Return the settings that identify the analysis, which reads no images."""
    return subject.settings(factors=True)


def compute(subject: "TunedSubject") -> Analysis:
    """Compute the analysis of a run whose tuner has experts."""
    analysis = Analysis("similarity", "similarity", settings(subject))
    analysis.groups["all"] = similarity(subject.tuner.experts())  # type: ignore[operator]
    arrays = analysis.groups["all"]
    names = [*(str(n) for n in arrays["layers"]), "model"]
    counts = [*arrays["experts"], int(arrays["experts"].sum())]
    columns = np.stack([arrays[key] for key in ("cosine", "absolute", "absolute_b", "absolute_a")], 1)
    values = np.vstack([columns, np.concatenate([arrays["model"], arrays["factors"]])])
    analysis.tables[""] = [HEADER, *([n, str(int(c)), *(f"{v:.6f}" for v in row)] for n, c, row in zip(names, counts, values, strict=True))]
    return analysis


def cosines(experts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the cosines [n (n - 1) / 2] of all pairs of the matrices b_i a_i, using <b_i a_i, b_j a_j> = <b_i' b_j, a_i a_j'>."""
    pairs = [(b.double(), a.double()) for b, a in experts]
    inner = torch.tensor([[float(((b.T @ d) * (a @ c.T)).sum()) for d, c in pairs] for b, a in pairs], dtype=torch.float64)
    sizes = inner.diagonal().clamp(min=1e-300).sqrt()
    first, second = torch.triu_indices(len(pairs), len(pairs), 1)
    return (inner / sizes[:, None] / sizes)[first, second]


def similarity(layers: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> dict[str, np.ndarray]:
    """Return the mean pairwise cosine and |cosine| of each layer [L] (NaN for one expert), and over all pairs of the model [2].

    `absolute_b`, `absolute_a` [L] and `factors` [2] are the mean |cosine| of the factors b_i and a_i alone. These matter because the cosine
    of the products is small if one factor's is, and the a_i are initialised as random directions.
    """
    per_layer = [cosines(experts) for experts in layers.values()]
    sides = [[_factor_cosines([expert[side] for expert in experts]) for experts in layers.values()] for side in (0, 1)]
    every = torch.cat(per_layer)
    return {
        "layers": texts(list(layers)),
        "experts": np.array([len(experts) for experts in layers.values()]),
        "cosine": np.array([float(c.mean()) for c in per_layer]),
        "absolute": np.array([float(c.abs().mean()) for c in per_layer]),
        "model": np.array([float(every.mean()), float(every.abs().mean())]),
        "absolute_b": np.array([float(c.mean()) for c in sides[0]]),
        "absolute_a": np.array([float(c.mean()) for c in sides[1]]),
        "factors": np.array([float(torch.cat(side).mean()) for side in sides]),
    }


def _factor_cosines(factors: Sequence[Tensor]) -> Tensor:
    """Return |cosine| [n (n - 1) / 2] of one factor (a or b) for all pairs of experts."""
    flat = torch.nn.functional.normalize(torch.stack([f.double().reshape(-1) for f in factors]), dim=1)
    first, second = torch.triu_indices(len(flat), len(flat), 1)
    return (flat @ flat.T).abs()[first, second]
