"""Run by test_merge_triton.py with TRITON_INTERPRET=1, which has to be set before Triton is imported: the kernels on CPU tensors."""

import itertools
import sys

import torch
from torch import Tensor

from smatcli.experts import merge_triton
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import normalise
from smatcli.experts.merge_eager import Gate, backward, forward
from smatcli.experts.noise import key_tensor

SHAPE = HardConcrete()


def largest_difference(tasks: int, experts: int, size: int, noisy: bool, dense: bool, unused: bool, with_share: bool) -> float:
    """Of all outputs from those of eager torch in float64, relative to the norm of each."""
    generator = torch.Generator().manual_seed(size + experts)
    shapes = [(size,), (size,), (experts, size), (tasks, experts), (tasks, experts)]
    pre, delta, log_alpha, alphas, share = (torch.randn(*s, generator=generator) for s in shapes)
    log_alpha, alphas = log_alpha * 3, normalise(alphas.sigmoid())
    grads: list[Tensor | None] = [torch.randn(size, generator=generator) for _ in range(tasks)]
    if unused:
        grads[0] = None
    always = torch.arange(size) > 0.8 * size if dense else None
    seeds: list[int | None] = list(range(3, 3 + tasks)) if noisy else [None]
    keys = key_tensor([seed for seed in seeds if seed is not None], experts) if noisy else None
    found = merge_triton.forward(pre, delta, log_alpha, alphas, keys, always, SHAPE)
    found_back = merge_triton.backward(grads, delta, log_alpha, alphas, keys, always, SHAPE, share if with_share else None)

    gates = [Gate(SHAPE, True, seed, always) for seed in seeds]
    kept: list[Tensor | None] = [None] * len(gates)
    pre, delta, log_alpha, alphas, share = (t.double() for t in (pre, delta, log_alpha, alphas, share))
    wanted = forward(pre, delta, log_alpha, alphas, gates, kept)
    wide = [None if g is None else g.double() for g in grads]
    wanted_back = backward(wide, delta, log_alpha, alphas, gates, kept, share if with_share else None)
    pairs = [*zip(found[0], wanted[0], strict=True), *zip(found[1:], wanted[1:], strict=True), *zip(found_back, wanted_back, strict=True)]
    assert all(ours.shape == theirs.shape and ours.dtype == torch.float32 for ours, theirs in pairs)
    return max(float((ours.double() - theirs).norm() / (theirs.norm() + 1e-12)) for ours, theirs in pairs)


def main() -> None:
    """Exits with 1 at the first combination that differs."""
    sizes = itertools.product([(1, 1, 5), (1, 8, 1030), (3, 4, 700), (4, 2, 257)], [False, True], range(3))
    for (tasks, experts, size), noisy, case in sizes:
        dense, unused, with_share = case == 0, case == 1 and tasks > 1, case != 2
        found = largest_difference(tasks, experts, size, noisy, dense, unused, with_share)
        if not found < 3e-6:
            sys.exit(f"{tasks=} {experts=} {size=} {noisy=} {dense=} {unused=} {with_share=}: {found}")


if __name__ == "__main__":
    main()
