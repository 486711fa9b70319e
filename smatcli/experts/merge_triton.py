"""The fused merge for CUDA, in Triton; `merge_native.c` says what is computed and why so. A program makes a block of columns."""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor

from smatcli.experts.masks import HardConcrete

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch, macOS, Windows
    triton = None

ENTRIES = 512  # of a block: tasks (rounded up to a power of two) times columns


def available() -> str | None:
    """Why Triton cannot be used here, or None."""
    if triton is None:
        return "Triton is not installed"
    return None if torch.cuda.is_available() else "there is no CUDA device"


def forward(
    theta_pre: Tensor,
    theta_delta: Tensor,
    log_alpha: Tensor,
    alphas: Tensor,
    keys: Tensor | None,
    dense: Tensor | None,
    shape: HardConcrete,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """See `smatcli.experts.merge_kernels.Kernel`."""
    (tasks, experts), gates = alphas.shape, 1 if keys is None else len(keys)
    grid, settings = _grid(log_alpha, tasks, gates, keys, dense, shape)
    thetas = [torch.empty_like(theta_pre) for _ in range(tasks)]
    counts = log_alpha.new_empty(grid, gates, experts)
    l0 = log_alpha.new_empty(grid, experts)
    places = _pointers(thetas, log_alpha.device)
    tensors = (theta_pre, theta_delta, log_alpha, alphas, *_noise(keys, dense, log_alpha), places, counts, l0)
    _forward[(grid,)](*tensors, **settings)
    return thetas, counts.double().sum(0).to(log_alpha.dtype), l0.double().sum(0).to(log_alpha.dtype)


def backward(
    grads: Sequence[Tensor | None],
    theta_delta: Tensor,
    log_alpha: Tensor,
    alphas: Tensor,
    keys: Tensor | None,
    dense: Tensor | None,
    shape: HardConcrete,
    share: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `smatcli.experts.merge_kernels.Kernel`."""
    tasks, gates = len(alphas), 1 if keys is None else len(keys)
    grid, settings = _grid(log_alpha, tasks, gates, keys, dense, shape)
    grads = [None if grad is None else grad.to(torch.float32).contiguous() for grad in grads]
    share = torch.zeros_like(alphas) if share is None else share.to(torch.float32)
    # One gate: the tasks' shares go to the one mask, as the sum of its row.
    share = share.contiguous() if gates == tasks else torch.cat([share.sum(0, keepdim=True), torch.zeros_like(share[1:])])
    d_delta, d_log_alpha = torch.empty_like(theta_delta), torch.empty_like(log_alpha)
    d_alphas = log_alpha.new_empty(grid, *alphas.shape)
    places = _pointers(grads, log_alpha.device)
    tensors = (theta_delta, log_alpha, alphas, *_noise(keys, dense, log_alpha), places, share, d_delta, d_log_alpha, d_alphas)
    _backward[(grid,)](*tensors, **settings)
    return d_delta, d_log_alpha, d_alphas.double().sum(0).to(alphas.dtype)


def _grid(
    log_alpha: Tensor, tasks: int, gates: int, keys: Tensor | None, dense: Tensor | None, shape: HardConcrete
) -> tuple[int, dict[str, Any]]:
    """The number of programs, and what both kernels are told."""
    rows = triton.next_power_of_2(tasks)
    block = max(128, ENTRIES // rows)
    settings: dict[str, Any] = {"columns": log_alpha.shape[1], "experts": len(log_alpha), "tasks": tasks, "gates": gates}
    settings |= {"gamma": shape.gamma, "stretch": shape.stretch, "odds_l0": exp(shape.l0_shift)}
    settings |= {"ROWS": rows, "NOISY": keys is not None, "DENSE": dense is not None, "BLOCK": block, "num_warps": 4}
    return triton.cdiv(log_alpha.shape[1], block), settings


def _noise(keys: Tensor | None, dense: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Keys int32 (the low halves) and dense uint8; a tensor that is not read where there is none."""
    unread = like.new_empty(1)
    return unread if keys is None else keys.to(torch.int32).contiguous(), unread if dense is None else dense.to(torch.uint8)


def _pointers(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    return torch.tensor([0 if t is None else t.data_ptr() for t in tensors], dtype=torch.int64).to(device)


if triton is not None:

    @triton.jit
    def _gates(entry, keys, m, column, b, here, experts, tasks, NOISY: tl.constexpr):  # type: ignore[no-untyped-def]
        """e = exp(log_alpha) [1, BLOCK] of the entries, and y = (odds e)^1.5: [ROWS, BLOCK] with noise, else [1, BLOCK]."""
        x = tl.load(entry, mask=here, other=0.0)
        # Comparisons keep a NaN a NaN.
        x = tl.where(x > 40.0, 40.0, x)
        x = tl.where(x < -40.0, -40.0, x)
        e = tl.exp(x)[None, :]
        y = e
        if NOISY:
            key = (b * experts + m) * 2
            k0 = tl.load(keys + key, mask=b < tasks, other=0).to(tl.uint32, bitcast=True)
            k1 = tl.load(keys + key + 1, mask=b < tasks, other=1).to(tl.uint32, bitcast=True)
            h = column.to(tl.uint32)[None, :] * k1[:, None] + k0[:, None]
            h ^= h >> 16
            h *= 0x7FEB352D
            h ^= h >> 15
            h *= 0x846CA68B
            h ^= h >> 16
            u = ((h >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
            y = e * (u / (1.0 - u))
        return e, y * tl.sqrt(y)

    @triton.jit
    def _forward(  # type: ignore[no-untyped-def]
        theta_pre, theta_delta, log_alpha, alphas, keys, dense, thetas, counts, l0,
        columns, experts, tasks, gates, gamma, stretch, odds_l0,
        ROWS: tl.constexpr, NOISY: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        column = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        b = tl.arange(0, ROWS)
        here = column < columns
        if DENSE:
            always = tl.load(dense + column, mask=here, other=0)[None, :] != 0
        mask = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
        row = column  # m P + column, in 64 bits
        for m in range(experts):
            e, y = _gates(log_alpha + row, keys, m, column, b, here, experts, tasks, NOISY)
            w = e * odds_l0
            tl.store(l0 + program * experts + m, tl.sum(tl.where(here[None, :], w / (1.0 + w), 0.0)))
            z = y / (1.0 + y) * stretch + gamma
            z = tl.where(z < 0.0, 0.0, z)
            z = tl.where(z > 1.0, 1.0, z)
            alive = (z > 0.0) & here[None, :]
            if DENSE:
                alive = ((z > 0.0) | always) & here[None, :]
            count = tl.sum(tl.where(alive, 1.0, 0.0), axis=1)
            if NOISY:
                tl.store(counts + (program * gates + b) * experts + m, count, mask=b < gates)
            else:
                tl.store(counts + program * experts + m, tl.sum(count))
            mask += tl.load(alphas + b * experts + m, mask=b < tasks, other=0.0)[:, None] * z
            row += columns
        if DENSE:
            mask = tl.where(always, 1.0, mask)
        pre = tl.load(theta_pre + column, mask=here, other=0.0)[None, :]
        delta = tl.load(theta_delta + column, mask=here, other=0.0)[None, :]
        place = tl.load(thetas + b, mask=b < tasks, other=0).to(tl.pointer_type(tl.float32))
        tl.store(place[:, None] + column[None, :], pre + delta * mask, mask=(b < tasks)[:, None] & here[None, :])

    @triton.jit
    def _backward(  # type: ignore[no-untyped-def]
        theta_delta, log_alpha, alphas, keys, dense, grads, share, d_delta, d_log_alpha, d_alphas,
        columns, experts, tasks, gates, gamma, stretch, odds_l0,
        ROWS: tl.constexpr, NOISY: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        column = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        b = tl.arange(0, ROWS)
        here = column < columns
        address = tl.load(grads + b, mask=b < tasks, other=0)
        used = (address != 0)[:, None] & here[None, :]
        grad = tl.load(address.to(tl.pointer_type(tl.float32))[:, None] + column[None, :], mask=used, other=0.0)
        through = grad * tl.load(theta_delta + column, mask=here, other=0.0)[None, :]
        if DENSE:
            always = tl.load(dense + column, mask=here, other=0)[None, :] != 0
            through = tl.where(always, 0.0, through)
        mask = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
        low = -gamma / stretch
        high = (1.0 - gamma) / stretch
        row = column  # m P + column, in 64 bits
        for m in range(experts):
            e, y = _gates(log_alpha + row, keys, m, column, b, here, experts, tasks, NOISY)
            under = 1.0 / (1.0 + y)
            s = y * under
            z = s * stretch + gamma
            z = tl.where(z < 0.0, 0.0, z)
            z = tl.where(z > 1.0, 1.0, z)
            score = tl.load(alphas + b * experts + m, mask=b < tasks, other=0.0)[:, None]
            mask += score * z
            tl.store(d_alphas + (program * tasks + b) * experts + m, tl.sum(through * z, axis=1), mask=b < tasks)
            slope = tl.where((s > low) & (s < high), stretch * 1.5 * s * under, 0.0)
            w = e * odds_l0
            curve = w / ((1.0 + w) * (1.0 + w))
            part = tl.load(share + b * experts + m, mask=b < tasks, other=0.0)[:, None]
            term = score * through * slope + part * curve
            tl.store(d_log_alpha + row, tl.sum(term, axis=0), mask=here)
            row += columns
        if DENSE:
            mask = tl.where(always, 1.0, mask)
        tl.store(d_delta + column, tl.sum(grad * mask, axis=0), mask=here)
