"""Which kernel makes the merge: the one place of this choice. C on a CPU, Triton on CUDA, eager torch for everything else."""

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge_eager import Gate

log = logging.getLogger(__name__)

VARIABLE = "SMAT_MERGE"


class Kernel(Protocol):
    """Masks, merge and E[L0] of B tasks in one pass each way; G = 1 gate for all of them, or one for each.

    For beta = 2/3 and fp32. `keys` [G, M, 2] int64 are those of smatcli.experts.noise (None: no noise), `dense` [P] bool says where the
    merged mask is 1, `share` [B, M] is the gradient of E[L0] / P.
    """

    def forward(
        self,
        theta_pre: Tensor,
        theta_delta: Tensor,
        log_alpha: Tensor,
        alphas: Tensor,
        keys: Tensor | None,
        dense: Tensor | None,
        shape: HardConcrete,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """(thetas of B tasks [P], non-zeros [G, M], sum over P of E[L0] [M])."""

    def backward(
        self,
        grads: Sequence[Tensor | None],
        theta_delta: Tensor,
        log_alpha: Tensor,
        alphas: Tensor,
        keys: Tensor | None,
        dense: Tensor | None,
        shape: HardConcrete,
        share: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of theta_delta [P], log_alpha [M, P] and alphas [B, M]."""


def fused_kernel(theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, gates: Sequence[Gate]) -> Kernel | None:
    """The fused kernel for these tensors and gates, or None: then eager torch computes the same."""
    gate = gates[0]
    tensors = (theta_pre, theta_delta, log_alpha, alphas)
    fits = gate.training and abs(gate.shape.beta * 1.5 - 1) < 1e-9 and log_alpha.shape[1] < 2**31
    fits = fits and all(t.dtype == torch.float32 and t.is_contiguous() and t.device == log_alpha.device for t in tensors)
    if not fits or any(isinstance(one.noise, Tensor) for one in gates):
        return None
    return _kernel(log_alpha.device.type, os.environ.get(VARIABLE, "auto"))


@lru_cache
def _kernel(device: str, wanted: str) -> Kernel | None:
    if wanted not in ("auto", "eager", "fused"):
        raise UserError(f"{VARIABLE}={wanted}: unknown; use auto, fused (an error where it cannot be had) or eager")
    if wanted == "eager" or (device not in ("cpu", "cuda") and wanted == "auto"):
        return None
    kernel, missing = _triton() if device == "cuda" else _native() if device == "cpu" else (None, f"there is none for {device}")
    if missing is None:
        return kernel
    if wanted == "fused":
        raise UserError(f"{VARIABLE}=fused: {missing}; use {VARIABLE}=auto")
    log.warning("masks are merged by eager torch (several times slower in that part): %s", missing)
    return None


def _native() -> tuple[Kernel | None, str | None]:
    from smatcli.experts import merge_native

    library = merge_native.library()
    return (None, library) if isinstance(library, str) else (merge_native.Native(library), None)


def _triton() -> tuple[Kernel | None, str | None]:
    from smatcli.experts import merge_triton

    missing = merge_triton.available()
    return (None, missing) if missing else (merge_triton, None)  # type: ignore[return-value]
