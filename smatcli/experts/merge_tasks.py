"""The merge of all tasks of a meta-batch in one pass over log_alpha each way: every task its own scores and noise, E[L0] once."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from smatcli.device import exact_products
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import Gate, Merged, keeps_gates
from smatcli.phases import phase


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
    """What `merge` in training gives for each row of `alphas` [B, M] with its seed (None: no noise), as B separate tasks.

    With seeds theta, counts and gradients equal those of B calls bit for bit; without noise the masks are made once for all tasks, and sums
    over tasks are rounded in another order. Nothing of size [M, P] is kept for backward beyond `merge`'s bound, for all tasks together.
    """
    gates = [Gate(shape, True, seed, dense) for seed in (seeds if seeds is not None else [None])]
    with torch.autocast(log_alpha.device.type, enabled=False), exact_products():
        nonzeros, l0, *thetas = _MergeTasks.apply(theta_pre, theta_delta, log_alpha, alphas, gates, keeps_gates(log_alpha, len(gates)))
    return [Merged(*one) for one in zip(thetas, nonzeros, l0, strict=True)]


class _MergeTasks(torch.autograd.Function):
    """One gate for all tasks, or one for each; the chunks of P are the outer loop, so that log_alpha stays in the cache for all tasks."""

    @staticmethod
    def forward(ctx: Any, theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, gates: list[Gate], keep: bool) -> Any:
        (tasks, experts), size, shape = alphas.shape, log_alpha.shape[1], gates[0].shape
        thetas = [torch.empty_like(theta_pre) for _ in range(tasks)]
        nonzeros, l0 = log_alpha.new_zeros(len(gates), experts), log_alpha.new_zeros(experts)
        kept = [torch.empty_like(log_alpha) if keep else None for _ in gates]
        for part, drawn in _by_chunk(gates, log_alpha, kept, filled=False):
            for i, (_, z) in enumerate(drawn):
                for b in range(tasks) if len(gates) == 1 else (i,):
                    torch.addcmul(theta_pre[part], theta_delta[part], gates[i].merged(alphas[b], z, part), out=thetas[b][part])
                if gates[i].dense is not None:
                    z.masked_fill_(gates[i].dense[part], 1.0)  # type: ignore[index]
                nonzeros[i] += z.sign_().sum(1)
            l0 += torch.add(log_alpha[:, part], shape.l0_shift).sigmoid_().sum(1)
        ctx.save_for_backward(theta_delta, log_alpha, alphas, *kept)
        ctx.gates = gates
        nonzeros = nonzeros.expand(tasks, experts)
        ctx.mark_non_differentiable(nonzeros)
        ctx.set_materialize_grads(False)
        return nonzeros, (l0 / size).repeat(tasks, 1), *thetas

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: None, grad_l0: Tensor | None, *grads: Tensor | None) -> Any:
        with phase("merge"), exact_products():
            return _MergeTasks._backward(ctx, grad_l0, grads)

    @staticmethod
    def _backward(ctx: Any, grad_l0: Tensor | None, grads: tuple[Tensor | None, ...]) -> Any:
        theta_delta, log_alpha, alphas, *kept = ctx.saved_tensors
        gates: list[Gate] = ctx.gates
        tasks = [b for b, grad in enumerate(grads) if grad is not None]
        d_delta, d_log_alpha, d_alphas = torch.zeros_like(theta_delta), torch.empty_like(log_alpha), torch.zeros_like(alphas)
        share = None if grad_l0 is None else grad_l0 / log_alpha.shape[1]
        shape = gates[0].shape
        slope = shape.stretch / shape.beta
        for part, drawn in _by_chunk(gates, log_alpha, kept, filled=kept[0] is not None):
            out, delta, fresh = d_log_alpha[:, part], theta_delta[part], True
            curve = None
            if share is not None:
                p = torch.add(log_alpha[:, part], shape.l0_shift).sigmoid_()
                curve = p.addcmul_(p, p, value=-1)
            for i, (s, z) in enumerate(drawn):
                rows = tasks if len(gates) == 1 else [i]
                if len(gates) > 1 and grads[i] is None:
                    rows = []
                if rows:
                    g = torch.stack([grads[b][part] for b in rows])  # type: ignore[index]
                    scores = alphas if len(rows) == len(alphas) else alphas[rows]
                    d_delta[part] += (g * gates[i].merged(scores, z, part)).sum(0)
                    g = g.mul_(delta)
                    if gates[i].dense is not None:
                        g.masked_fill_(gates[i].dense[part], 0.0)  # type: ignore[index]
                    if len(rows) == len(alphas):
                        d_alphas += g @ z.T
                    else:
                        d_alphas[rows] += g @ z.T
                    d_z = gates[i].through_clamp((scores.T * slope) @ g, s)
                    slant = torch.addcmul(s, s, s, value=-1, out=z)
                    term = torch.mul(d_z, slant, out=out if fresh else d_z)
                else:
                    term = out.zero_() if fresh else torch.zeros_like(out)
                if curve is not None and share is not None:
                    term.addcmul_(curve, (share.sum(0) if len(gates) == 1 else share[i])[:, None])
                if not fresh:
                    out.add_(term)
                fresh = False
        d_pre = torch.stack([g for g in grads if g is not None]).sum(0) if ctx.needs_input_grad[0] and tasks else None
        return d_pre, d_delta, d_log_alpha, d_alphas, None, None


def _by_chunk(
    gates: list[Gate], log_alpha: Tensor, kept: Sequence[Tensor | None], filled: bool
) -> Iterator[tuple[slice, Iterator[tuple[Tensor, Tensor]]]]:
    """(slice, (s, z) of each gate) by chunks of P; the gates of a chunk are made one after the other, when they are asked for."""
    chunks = [gate.chunks(log_alpha, one, filled) for gate, one in zip(gates, kept, strict=True)]
    for part in gates[0].parts(log_alpha):
        yield part, (next(one)[1:] for one in chunks)
