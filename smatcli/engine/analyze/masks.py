"""Analysis `masks`: the experts' capacity by layer, and the overlap of their masks (Chen et al., ICML 2024, Fig. 5a, b, d)."""

import numpy as np
import torch
from torch import Tensor

from smatcli.engine.analyze.subject import AnalysisJob, Subject
from smatcli.methods.smat import SmatMethod
from smatcli.runs.analysis import Analysis, texts

CHUNK = 2**20


def jobs(subject: Subject) -> list[AnalysisJob]:
    """Return the single analysis."""
    analysis = Analysis("masks", "masks", subject.settings())
    return [AnalysisJob(analysis, lambda: fill(subject, analysis))]


def fill(subject: Subject, analysis: Analysis) -> None:
    """Fill the analysis: the non-zeros of each expert's inference mask by segment of the flat vector, and the masks' overlap [M, M].

    The overlap is |z_i and z_j| / |z_i or z_j|; that of two empty masks is 0.
    """
    method = subject.method
    assert isinstance(method, SmatMethod)
    on = nonzero_masks(method)
    segments = method.space.segments
    nonzeros = torch.stack([on[:, s.slice].sum(1) for s in segments], dim=1).cpu().numpy().astype(np.int64)
    both = intersections(on)
    alone = on.sum(1).cpu().double()
    either = alone[:, None] + alone[None, :] - both
    overlap = torch.where(either > 0, both / either.clamp_min(1), torch.zeros_like(both)).numpy()
    experts = range(len(on))
    heads = ["tensor", "layer", "depth", "parameters", *(f"expert {m + 1} non-zeros" for m in experts)]
    lines = [
        [s.name, s.layer, "" if s.depth is None else str(s.depth), str(s.size), *map(str, nonzeros[:, i])] for i, s in enumerate(segments)
    ]
    pairs = [["expert", *(str(m + 1) for m in experts)], *([str(m + 1), *(f"{v:.6f}" for v in overlap[m])] for m in experts)]
    arrays = {
        "tensor": texts([s.name for s in segments]),
        "layer": texts([s.layer for s in segments]),
        "depth": np.array([-1 if s.depth is None else s.depth for s in segments]),
        "size": np.array([s.size for s in segments], np.int64),
        "nonzeros": nonzeros,
        "overlap": overlap,
    }
    analysis.groups, analysis.tables = {"all": arrays}, {"": [heads, *lines], "overlap": pairs}
    analysis.facts = {"parameters": method.space.size, "bytes": method.compressed().nbytes}


def nonzero_masks(method: SmatMethod) -> Tensor:
    """Return bool [M, P]: where the inference mask of each expert is not zero."""
    rows = method.masks.inference(method.mask_state, method.config.experts, method.theta_pre)
    return torch.stack([(z > 0) if method.dense is None else (z > 0) | method.dense for z in rows])


def intersections(on: Tensor) -> Tensor:
    """Return [M, M] float64: the numbers of parameters that two masks of `on` bool [M, P] share. Chunks avoid a float copy of all masks."""
    total = torch.zeros(len(on), len(on), dtype=torch.float64)
    for part in on.split(CHUNK, dim=1):
        total += (part.float() @ part.float().T).double().cpu()
    return total
