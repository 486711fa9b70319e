"""Run the Triton kernels on CPU tensors; test_merge_triton.py sets TRITON_INTERPRET=1, which must precede the import of Triton.

They are compared with autograd in float64 through the definition; the noise, bit for bit, with the same function in numpy.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from smatcli.experts import merge_triton
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge_inputs import MergeInputs
from smatcli.experts.noise import key_tensor

SHAPE = HardConcrete()


@triton.jit
def _uniforms(out, keys, start, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    k0, k1 = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
    tl.store(out + lane, merge_triton._uniform((start + lane).to(tl.uint32), k0, k1))


def uniform(columns: Any, k0: int, k1: int) -> Any:
    """Return u of `columns` (int64 array) for a pair of keys, in float64."""
    x = (columns * k1 + k0).astype(np.uint32)  # the low half of 64-bit products
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    x = x ^ (x >> np.uint32(16))
    return ((x >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23


def reference(
    tensors: list[Tensor], u: Tensor | None, dense: Tensor | None, grads: list[Tensor | None], share: Tensor | None
) -> list[Tensor]:
    """Thetas [B, P], non-zeros [G, M], l0 [M], and the gradients of sum_b grads_b theta_b + sum share l0, in float64; u [G, M, P]."""
    pre, *rest = (t.double() for t in tensors)
    delta, log_alpha, alphas = leaves = [t.requires_grad_() for t in rest]
    logits = log_alpha[None] if u is None else log_alpha + u.log() - (-u).log1p()
    z = (torch.sigmoid(logits * 1.5) * SHAPE.stretch + SHAPE.gamma).clamp(0, 1)
    mask = torch.einsum("bm,bmp->bp", alphas, z.expand(len(alphas), -1, -1))
    alive = z > 0
    if dense is not None:
        mask, alive = torch.where(dense, 1.0, mask), alive | dense
    thetas = pre + delta * mask
    l0 = torch.sigmoid(log_alpha + SHAPE.l0_shift).sum(1)
    loss = sum(((grad.double() * theta).sum() for grad, theta in zip(grads, thetas, strict=True) if grad is not None), 0 * thetas.sum())
    loss = loss if share is None else loss + (share.double() * l0).sum()
    return [thetas.detach(), alive.sum(-1), l0.detach(), *torch.autograd.grad(loss, leaves)]


def check(tasks: int, gates: int, experts: int, size: int, case: str) -> None:
    """Compare all outputs with the reference, by the norm; `gates` 0: no noise."""
    generator = torch.Generator().manual_seed(1000 * experts + size)
    shapes = [(size,), (size,), (experts, size), (tasks, experts), (tasks, experts)]
    pre, delta, log_alpha, alphas, share = (torch.randn(*s, generator=generator) for s in shapes)
    log_alpha *= 3
    grads: list[Tensor | None] = [torch.randn(size, generator=generator) for _ in range(tasks)]
    if case == "unused":
        grads[0] = None
    dense = torch.arange(size) % 5 == 3 if case == "dense" else None
    shared = None if case == "no share" else share
    keys = key_tensor(list(range(3, 3 + gates)), experts) if gates else None
    u = None
    if keys is not None:
        made = [[uniform(np.arange(size), int(k0), int(k1)) for k0, k1 in gate] for gate in keys.tolist()]
        u = torch.from_numpy(np.array(made))
    inputs = MergeInputs(delta, log_alpha, alphas, keys, dense, SHAPE)
    thetas, nonzeros, l0 = merge_triton.forward(pre, inputs)
    assert len(thetas) == tasks
    assert all(theta.is_contiguous() for theta in thetas)
    found_back = merge_triton.backward(grads, inputs, shared)
    found = [torch.stack(thetas), nonzeros, l0, *found_back]
    wanted = reference([pre, delta, log_alpha, alphas], u, dense, grads, shared)
    for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours.shape == theirs.shape, (i, ours.shape, theirs.shape)
        assert ours.dtype == torch.float32, (i, ours.shape, theirs.shape)
        # By the norm: a gate within a rounding of the clamp's edge has one of two gradients.
        difference = float((ours.double() - theirs).norm())
        bound = 0 if i == 1 else 3e-6 * float(theirs.double().norm()) + 1e-12
        assert difference <= bound, (tasks, gates, experts, size, case, i, difference, bound)


def noise_is_the_same_everywhere() -> None:
    """Check columns beyond 2^31, and keys whose highest bit is set."""
    for start, (k0, k1) in itertools.product([0, 2**31 - 60], [(0, 1), (2**32 - 1, 2**32 - 1), (0x9E3779B9, 0x85EBCA6B)]):
        out = torch.full((128,), torch.nan)
        _uniforms[(1,)](out, torch.tensor([k0, k1]), start, BLOCK=128)
        wanted = uniform(np.arange(start, start + 128), k0, k1)
        assert np.array_equal(out.double().numpy(), wanted), (start, k0, k1)
        assert wanted.min() > 0
        assert wanted.max() < 1


def extremes_are_finite_and_nan_stays_nan() -> None:
    """Check saturated gates, and one column of NaN."""
    size, keys = 40, key_tensor([1], 3)
    pre, delta, grad = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    log_alpha, alphas = torch.tensor([1e4, -1e4, -math.inf])[:, None].repeat(1, size), torch.full((1, 3), 1 / 3)
    inputs = MergeInputs(delta, log_alpha, alphas, keys, None, SHAPE)
    (theta,), nonzeros, l0 = merge_triton.forward(pre, inputs)
    grads = merge_triton.backward([grad], inputs, torch.ones(1, 3))
    assert all(bool(torch.isfinite(t).all()) for t in (theta, *grads))
    assert nonzeros.tolist() == [[size, 0, 0]]
    assert torch.allclose(l0, torch.tensor([float(size), 0, 0]))
    log_alpha[1, 17] = torch.nan
    (theta,), _, _ = merge_triton.forward(pre, inputs)
    assert theta[17].isnan()
    assert theta.isnan().sum() == 1


def main() -> None:
    """Run all combinations; fail with the first that differs."""
    noise_is_the_same_everywhere()
    extremes_are_finite_and_nan_stays_nan()
    for (tasks, gates), case in itertools.product([(1, 0), (1, 1), (3, 0), (3, 1), (3, 3)], ["dense", "unused", "no share"]):
        check(tasks, gates, 4, 300, case)
    for (tasks, gates), (experts, size) in itertools.product([(1, 1), (3, 0), (3, 3)], [(1, 5), (1, 256), (8, 257), (16, 33)]):
        check(tasks, gates, experts, size, "plain")
    check(9, 9, 2, 70, "dense")  # fewer columns per program


if __name__ == "__main__":
    main()
