"""The fused merge for CUDA, in Triton; `merge_native.c` explains the formulas. Each program computes a block of columns.

A program loops over the experts, with the tasks unrolled. Each task's values for the columns stay in registers, and the next expert's
log_alpha is loaded while the gates of the current one are computed. Each program writes its sums over columns to a buffer, so that sums
are always added in the same order.

Undecided until measured on a GPU: whether this kernel is faster than `torch.compile` of `merge_eager`.
"""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor

from smatcli.experts.merge_inputs import MergeInputs

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch, macOS, Windows
    triton = None

WARPS = 1  # per program: sums over its columns need no barrier


def block(tasks: int) -> int:
    """Return the columns per program: 8 per thread, fewer when many tasks share the registers."""
    return 32 * max(1, min(8, 32 // int(triton.next_power_of_2(tasks))))


def unavailable() -> str | None:
    """Return the reason why Triton cannot be used here, or None if it can."""
    if triton is None:
        return "Triton is not installed"
    return None if torch.cuda.is_available() else "there is no CUDA device"


def forward(theta_pre: Tensor, inputs: MergeInputs) -> tuple[list[Tensor], Tensor, Tensor]:
    """See `smatcli.experts.merge_kernels.Kernel`."""
    log_alpha = inputs.log_alpha
    grid, settings = _settings(inputs)
    thetas = tuple(torch.empty_like(theta_pre) for _ in inputs.alphas)
    counts = log_alpha.new_empty(grid, inputs.gates, len(log_alpha))
    l0 = log_alpha.new_empty(grid, len(log_alpha))
    with torch.cuda.device_of(log_alpha):
        _forward[(grid,)](theta_pre, *_tensors(inputs), thetas, counts, l0, **settings)
    return list(thetas), _total(counts), _total(l0)


def backward(grads: Sequence[Tensor | None], inputs: MergeInputs, share: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """See `smatcli.experts.merge_kernels.Kernel`."""
    log_alpha = inputs.log_alpha
    grid, settings = _settings(inputs)
    used = tuple(None if grad is None else grad.to(torch.float32).contiguous() for grad in grads)
    d_delta, d_log_alpha = torch.empty_like(inputs.theta_delta), torch.empty_like(log_alpha)
    d_alphas = log_alpha.new_empty(grid, *inputs.alphas.shape)
    outputs = (d_delta, d_log_alpha, d_alphas)
    with torch.cuda.device_of(log_alpha):
        _backward[(grid,)](*_tensors(inputs), used, inputs.share_per_gate(share), *outputs, **settings)
    return d_delta, d_log_alpha, _total(d_alphas)


def _tensors(inputs: MergeInputs) -> tuple[Tensor | None, ...]:
    """Return the arguments that both kernels share, in order."""
    return inputs.theta_delta, inputs.log_alpha, inputs.alphas, inputs.keys, _bytes(inputs.dense)


def _settings(inputs: MergeInputs) -> tuple[int, dict[str, Any]]:
    """Return the number of programs, and the scalar arguments and options of both kernels."""
    (experts, columns), tasks, shape = inputs.log_alpha.shape, len(inputs.alphas), inputs.shape
    settings: dict[str, Any] = {"columns": columns, "experts": experts, "gamma": shape.gamma, "stretch": shape.stretch}
    settings |= {"odds_l0": exp(shape.l0_shift), "TASKS": tasks, "GATES": inputs.gates}
    settings |= {"BLOCK": block(tasks), "num_warps": WARPS}
    return triton.cdiv(columns, settings["BLOCK"]), settings


def _bytes(dense: Tensor | None) -> Tensor | None:
    return None if dense is None else dense.contiguous().view(torch.uint8)


def _total(parts: Tensor) -> Tensor:
    return parts.sum(0, dtype=torch.float64).to(parts.dtype)


if triton is not None:

    @triton.jit
    def _uniform(column, k0, k1):  # type: ignore[no-untyped-def]
        """Compute u of smatcli.experts.noise for columns and keys in uint32."""
        h = column * k1 + k0
        h ^= h >> 16
        h *= 0x7FEB352D
        h ^= h >> 15
        h *= 0x846CA68B
        h ^= h >> 16
        return ((h >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23

    @triton.jit
    def _exponential(x):  # type: ignore[no-untyped-def]
        return tl.exp(tl.clamp(x, -40.0, 40.0, propagate_nan=tl.PropagateNan.ALL))

    @triton.jit
    def _inverse(x):  # type: ignore[no-untyped-def]
        """Compute 1 / x for positive x to a relative error of 3e-7: two instructions instead of a division's eight."""
        root = tl.rsqrt(x)
        return root * root

    @triton.jit
    def _power(e, column, keys, place):  # type: ignore[no-untyped-def]
        """Compute y = (odds e)^1.5 under the pair of keys at `place`."""
        y = e
        if keys is not None:
            k0 = tl.load(keys + place * 2).to(tl.uint32)
            k1 = tl.load(keys + place * 2 + 1).to(tl.uint32)
            u = _uniform(column, k0, k1)
            y = e * (u * _inverse(1.0 - u))
        return y * tl.sqrt(y)

    @triton.jit
    def _clamped(t):  # type: ignore[no-untyped-def]
        return tl.clamp(t, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)

    # Kernel: a launch passes tensors and constants one by one, hence the long parameter list.
    @triton.jit  # type: ignore[untyped-decorator]
    def _forward(  # type: ignore[no-untyped-def]  # noqa: PLR0913
        theta_pre, theta_delta, log_alpha, alphas, keys, dense, thetas, counts, l0,
        columns, experts, gamma, stretch, odds_l0,
        TASKS: tl.constexpr, GATES: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0).to(tl.int64)
        start = program * BLOCK
        lane = tl.arange(0, BLOCK)
        here = lane < columns - start
        column = (start + lane).to(tl.uint32)
        masks = ()  # type: tuple[Any, ...]
        for _ in tl.static_range(TASKS):
            masks += (tl.zeros([BLOCK], dtype=tl.float32),)
        least = tl.where(here, 0.0, 2.0)  # larger z count as non-zero: all where dense, none beyond the last column
        if dense is not None:
            always = tl.load(dense + start + lane, mask=here, other=0)
            least = tl.where(always != 0, -1.0, least)
        row = start  # m P + start, in 64 bits
        coming = tl.load(log_alpha + row + lane, mask=here, other=0.0)
        for m in range(experts):
            e = _exponential(coming)
            row += columns
            coming = tl.load(log_alpha + row + lane, mask=lane < tl.where(m + 1 < experts, columns - start, 0), other=0.0)
            w = e * odds_l0
            tl.store(l0 + program * experts + m, tl.sum(tl.where(here, w * _inverse(1.0 + w), 0.0)))
            for g in tl.static_range(GATES):
                y = _power(e, column, keys, g * experts + m)
                z = _clamped(y * _inverse(1.0 + y) * stretch + gamma)
                tl.store(counts + (program * GATES + g) * experts + m, tl.sum(tl.where(z > least, 1.0, 0.0)))
                added = ()  # type: tuple[Any, ...]
                for b in tl.static_range(TASKS):
                    mask = masks[b]
                    if GATES == 1 or b == g:
                        mask += tl.load(alphas + b * experts + m) * z
                    added += (mask,)
                masks = added
        pre = tl.load(theta_pre + start + lane, mask=here, other=0.0)
        delta = tl.load(theta_delta + start + lane, mask=here, other=0.0)
        for b in tl.static_range(TASKS):
            mask = masks[b]
            if dense is not None:
                mask = tl.where(least < 0.0, 1.0, mask)
            tl.store(thetas[b] + start + lane, pre + delta * mask, mask=here)

    # Kernel: see `_forward`.
    @triton.jit  # type: ignore[untyped-decorator]
    def _backward(  # type: ignore[no-untyped-def]  # noqa: PLR0913
        theta_delta, log_alpha, alphas, keys, dense, grads, share, d_delta, d_log_alpha, d_alphas,
        columns, experts, gamma, stretch, odds_l0,
        TASKS: tl.constexpr, GATES: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0).to(tl.int64)
        start = program * BLOCK
        lane = tl.arange(0, BLOCK)
        here = lane < columns - start
        column = (start + lane).to(tl.uint32)
        upstream = ()  # type: tuple[Any, ...]
        for b in tl.static_range(TASKS):
            grad = tl.zeros([BLOCK], dtype=tl.float32)
            if grads[b] is not None:
                grad = tl.load(grads[b] + start + lane, mask=here, other=0.0)
            upstream += (grad,)
        delta = tl.load(theta_delta + start + lane, mask=here, other=0.0)
        if dense is not None:
            always = tl.load(dense + start + lane, mask=here, other=0)
            delta = tl.where(always != 0, 0.0, delta)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        row = start
        coming = tl.load(log_alpha + row + lane, mask=here, other=0.0)
        for m in range(experts):
            e = _exponential(coming)
            coming = tl.load(log_alpha + row + columns + lane, mask=lane < tl.where(m + 1 < experts, columns - start, 0), other=0.0)
            d_row = tl.zeros([BLOCK], dtype=tl.float32)
            for g in tl.static_range(GATES):
                y = _power(e, column, keys, g * experts + m)
                under = _inverse(1.0 + y)
                s = y * under
                t = s * stretch + gamma
                z = _clamped(t)
                slope = tl.where((t > 0.0) & (t < 1.0), s * under * (stretch * 1.5), 0.0)
                scored = tl.zeros([BLOCK], dtype=tl.float32)  # sum_b alpha_b grad_b of this gate's tasks
                moved = delta * z
                for b in tl.static_range(TASKS):
                    if GATES == 1 or b == g:
                        place = b * experts + m
                        scored += tl.load(alphas + place) * upstream[b]
                        tl.store(d_alphas + program * (TASKS * experts) + place, tl.sum(upstream[b] * moved))
                total += scored * z
                d_row += scored * delta * slope
                if share is not None:
                    below = _inverse(1.0 + e * odds_l0)
                    d_row += tl.load(share + g * experts + m) * (e * odds_l0 * below * below)
            tl.store(d_log_alpha + row + lane, d_row, mask=here)
            row += columns
        if dense is not None:  # loaded a second time, because registers are scarce in the loop
            whole = tl.zeros([BLOCK], dtype=tl.float32)
            for b in tl.static_range(TASKS):
                whole += upstream[b]
            total = tl.where(tl.load(dense + start + lane, mask=here, other=0) != 0, whole, total)
        tl.store(d_delta + start + lane, total, mask=here)
