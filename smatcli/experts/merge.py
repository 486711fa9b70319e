"""Merge experts, theta = theta_pre + theta_delta * sum_m alpha_m z_m: a reference implementation and the fastest kernel for the device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smatcli.device import exact_products
from smatcli.experts import merge_eager
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge_eager import Gate, keeps_gates
from smatcli.experts.merge_inputs import MergeInputs
from smatcli.experts.merge_kernels import fused_kernel
from smatcli.experts.noise import key_tensor
from smatcli.phases import phase

EPS = 1e-8


def normalise(scores: Tensor) -> Tensor:
    """Return alpha = s / (sum_m s_m + 1e-8) over the last axis; all-zero scores stay zero and merge to the pre-trained model."""
    return scores / (scores.sum(-1, keepdim=True) + EPS)


def merge_reference(theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alpha: Tensor, gate: Gate) -> Tensor:
    """Compute `merge` by autograd, as a reference: theta [P], or [B, P] for alpha [B, M]. The noise of `gate` is u [M, P] or None.

    Where `gate.dense` [P] is True, the merged mask is 1.
    """
    assert not isinstance(gate.noise, int)
    shape = gate.shape
    mask = alpha @ (shape.train_gate(log_alpha, gate.noise) if gate.training else shape.eval_gate(log_alpha))
    if gate.dense is not None:
        mask = torch.where(gate.dense, torch.ones_like(mask), mask)
    return theta_pre + theta_delta * mask


class Merged(NamedTuple):
    """theta [P] or [B, P], the number of non-zeros of each mask [M] (no gradient), and E[L0(z_m)] / P [M]."""

    theta: Tensor
    nonzeros: Tensor
    expected_l0: Tensor


def merge(theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alpha: Tensor, gate: Gate) -> Merged:
    """Return theta [P] ([B, P] for alpha [B, M], with the same noise), the masks' non-zeros, and E[L0] / P (zeros unless training).

    Gives the same as `merge_reference` and `expected_l0`, with one pass over log_alpha [M, P] in each direction. Second derivatives are not
    supported.
    """
    rows = alpha.reshape(-1, alpha.shape[-1])
    nonzeros, l0, *thetas = _merge(theta_pre, theta_delta, log_alpha, rows, [gate])
    return Merged(thetas[0] if alpha.ndim == 1 else torch.stack(thetas).view(*alpha.shape[:-1], -1), nonzeros[0], l0[0])


def merge_tasks(
    theta_pre: Tensor,
    theta_delta: Tensor,
    log_alpha: Tensor,
    alphas: Tensor,
    shape: HardConcrete,
    *,
    seeds: Sequence[int] | None,
    dense: Tensor | None = None,
) -> list[Merged]:
    """Return the training result of `merge` for each row of `alphas` [B, M] and its seed (None: no noise), as B separate tasks.

    All tasks share one pass over log_alpha in each direction. With seeds, theta, counts and gradients equal those of B calls bit for bit.
    Without noise, all tasks share their masks, and sums over tasks are rounded differently.
    """
    gates = [Gate(shape, noise=seed, dense=dense) for seed in (seeds if seeds is not None else [None])]
    nonzeros, l0, *thetas = _merge(theta_pre, theta_delta, log_alpha, alphas, gates)
    return [Merged(*task) for task in zip(thetas, nonzeros, l0, strict=True)]


def _merge(theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, gates: list[Gate]) -> Any:
    with torch.autocast(log_alpha.device.type, enabled=False), exact_products():
        return _MergeFunction.apply(theta_pre, theta_delta, log_alpha, alphas.contiguous(), gates, keeps_gates(log_alpha, len(gates)))


class _MergeFunction(torch.autograd.Function):
    """Merge with one gate for all tasks or one per task, by a fused kernel if one supports these tensors, else in eager torch.

    Nothing of size [M, P] is saved for backward, except the gates of small models in eager torch (`keeps_gates`).
    """

    @staticmethod
    def forward(ctx: Any, theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, gates: list[Gate], keep: bool) -> Any:
        ctx.gates, ctx.keys, ctx.kernel = gates, None, fused_kernel(theta_pre, theta_delta, log_alpha, alphas, gates)
        kept: list[Tensor | None] = []
        if ctx.kernel is None:
            kept = [torch.empty_like(log_alpha) if keep else None for _ in gates]
            thetas, nonzeros, l0 = merge_eager.forward(theta_pre, theta_delta, log_alpha, alphas, gates, kept)
        else:
            if gates[0].noise is not None:
                ctx.keys = key_tensor([gate.noise for gate in gates], len(log_alpha)).to(log_alpha.device)  # type: ignore[misc]
            inputs = MergeInputs(theta_delta, log_alpha, alphas, ctx.keys, gates[0].dense, gates[0].shape)
            thetas, nonzeros, l0 = ctx.kernel.forward(theta_pre, inputs)
        ctx.save_for_backward(theta_delta, log_alpha, alphas, *kept)
        nonzeros = nonzeros.expand(len(alphas), -1)
        ctx.mark_non_differentiable(nonzeros)
        ctx.set_materialize_grads(value=False)
        return nonzeros, (l0 / log_alpha.shape[1]).repeat(len(alphas), 1), *thetas

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: None, grad_l0: Tensor | None, *grads: Tensor | None) -> Any:
        theta_delta, log_alpha, alphas, *kept = ctx.saved_tensors
        gates: list[Gate] = ctx.gates
        share = None if grad_l0 is None or not gates[0].training else grad_l0 / log_alpha.shape[1]
        with phase("merge"), exact_products():
            if ctx.kernel is None:
                gradients = merge_eager.backward(grads, theta_delta, log_alpha, alphas, gates, kept, share)
            else:
                inputs = MergeInputs(theta_delta, log_alpha, alphas, ctx.keys, gates[0].dense, gates[0].shape)
                gradients = ctx.kernel.backward(grads, inputs, share)
            used = [grad for grad in grads if grad is not None]
            d_pre = torch.stack(used).sum(0) if ctx.needs_input_grad[0] and used else None
        return d_pre, *gradients, None, None
