"""Inputs of the fused merge kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smatcli.experts.masks import HardConcrete


@dataclass(frozen=True, slots=True)
class MergeInputs:
    """Inputs that a fused kernel needs in both directions.

    theta_delta [P], log_alpha [M, P], alphas [B, M]; `keys` [G, M, 2] int64 of `smatcli.experts.noise` (None: no noise) for G = 1 gate for
    all tasks or one per task; `dense` [P] bool, where the merged mask is 1.
    """

    theta_delta: Tensor
    log_alpha: Tensor
    alphas: Tensor
    keys: Tensor | None
    dense: Tensor | None
    shape: HardConcrete

    @property
    def gates(self) -> int:
        """G, the number of gates: one for all tasks, or one per task."""
        return 1 if self.keys is None else len(self.keys)

    def share_per_gate(self, share: Tensor | None) -> Tensor | None:
        """Return the gradient of E[L0] of each gate, [G, M] or [M] in contiguous fp32, from that of each task [B, M]."""
        if share is None:
            return None
        return (share if self.gates == len(self.alphas) else share.sum(0)).to(torch.float32).contiguous()
