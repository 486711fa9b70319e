"""Terms of SIMoE's loss: answer likelihood, orthogonality of the masks, and the three sparsities that are reported."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.config.llm import OrthogonalityConfig
from smatcli.experts.gates import Gates

IGNORED = -100  # label of a token that is not trained


def answer_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the summed negative log-likelihood of the trained tokens, and their number: logits [B, T, V], labels [B, T].

    Position t predicts label t + 1. The sum is divided by the number of answer tokens of the whole update by the caller, so that gradient
    accumulation and several processes average over tokens, never over micro-batches.
    """
    shifted = labels[:, 1:]
    chosen = shifted != IGNORED
    asked = logits[:, :-1][chosen]
    asked = asked.to(torch.promote_types(asked.dtype, torch.float32))
    return F.cross_entropy(asked, shifted[chosen], reduction="sum"), int(chosen.sum())


def orthogonality(p: Tensor, config: OrthogonalityConfig) -> Tensor:
    """Return || Zn Zn^T - I || of the gates p [M, G], scaled to [0, 1] for unit rows and the Frobenius norm; 0 for a single expert.

    With unit rows the diagonal vanishes: the penalty is the size of the cosines between the experts' masks.
    """
    experts = len(p)
    if experts == 1:
        return p.new_zeros(())
    rows = F.normalize(p, dim=-1) if config.rows == "unit" else p
    gram = rows @ rows.T - torch.eye(experts, dtype=p.dtype, device=p.device)
    if config.norm == "spectral":
        largest: Tensor = torch.linalg.matrix_norm(gram, 2)
        return largest / (experts - 1)
    size: Tensor = torch.linalg.matrix_norm(gram)
    return size / math.sqrt(experts * (experts - 1))


def sparsities(gates: Gates, log_alpha: Tensor) -> dict[str, float]:
    """Return the three sparsities of the inference gates (mean of each expert's, of the stacked masks, of their union), in [0, 1]."""
    present = gates.inference(log_alpha.detach()) > 0
    densities = {"each": gates.density(present, "each").mean(), "union": gates.density(present, "union")[0]}
    entries = present.double().mean()
    return {
        "sparsity_parameters": 1 - float(densities["each"]),
        "sparsity_entries": 1 - float(entries),
        "sparsity_union": 1 - float(densities["union"]),
    }


def overlap(z: Tensor) -> float:
    """Return the mean intersection over union of the non-zero entries of pairs of masks z [M, G]; NaN for a single expert."""
    present = (z > 0).double()
    if len(present) < 2:
        return float("nan")
    both = present @ present.T
    sizes = present.sum(1)
    union = (sizes[:, None] + sizes[None] - both).clamp(min=1)
    upper = torch.triu_indices(len(z), len(z), 1)
    return float((both / union)[upper[0], upper[1]].mean())
