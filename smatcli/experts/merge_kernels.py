"""Choose the kernel of the merge: C on a CPU, Triton on CUDA, eager torch otherwise."""

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.experts.merge_eager import Gate
from smatcli.experts.merge_inputs import MergeInputs

log = logging.getLogger(__name__)

VARIABLE = "SMAT_MERGE"


class Kernel(Protocol):
    """Kernel for the masks, merge and E[L0] of B tasks, with one pass in each direction; supports beta = 2/3 and fp32."""

    def forward(self, theta_pre: Tensor, inputs: MergeInputs) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return (thetas of B tasks [P], non-zeros [G, M], sum over P of E[L0] [M])."""

    def backward(self, grads: Sequence[Tensor | None], inputs: MergeInputs, share: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of theta_delta [P], log_alpha [M, P], alphas [B, M] from those of theta and summed E[L0] (`share` [B, M])."""


def fused_kernel(theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, gates: Sequence[Gate]) -> Kernel | None:
    """Return the fused kernel for these tensors and gates, or None if only eager torch supports them."""
    gate = gates[0]
    tensors = (theta_pre, theta_delta, log_alpha, alphas)
    fits = gate.training and abs(gate.shape.beta * 1.5 - 1) < 1e-9 and log_alpha.shape[1] < 2**31
    fits = fits and all(t.dtype == torch.float32 and t.is_contiguous() and t.device == log_alpha.device for t in tensors)
    if not fits or any(isinstance(other.noise, Tensor) for other in gates):
        return None
    return _kernel(log_alpha.device.type, os.environ.get(VARIABLE, "auto"))


@lru_cache
def _kernel(device: str, wanted: str) -> Kernel | None:
    if wanted not in ("auto", "eager", "fused"):
        raise UserError(f"{VARIABLE}={wanted}: unknown; use auto, fused (an error if no fused kernel is available) or eager")
    if wanted == "eager" or (device not in ("cpu", "cuda") and wanted == "auto"):
        return None
    kernel, missing = _triton() if device == "cuda" else _native() if device == "cpu" else (None, f"not available on {device}")
    if missing is None:
        return kernel
    if wanted == "fused":
        raise UserError(f"{VARIABLE}=fused: {missing}; use {VARIABLE}=auto")
    log.warning("experts are merged in eager torch, which is several times slower: %s", missing)
    return None


def _native() -> tuple[Kernel | None, str | None]:
    from smatcli.experts import merge_native

    library = merge_native.library()
    return (None, library) if isinstance(library, str) else (merge_native.Native(library), None)


def _triton() -> tuple[Kernel | None, str | None]:
    from smatcli.experts import merge_triton

    missing = merge_triton.unavailable()
    return (None, missing) if missing else (merge_triton, None)
