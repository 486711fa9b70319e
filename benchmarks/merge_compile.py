"""Compare the C kernel of the merge with `torch.compile` of the eager version on a CPU.

python benchmarks/merge_compile.py [--parameters 21600000] [--experts 8,16] [--repeat 7] [--noise deterministic,stochastic]

Prints CPU seconds of masks, merge and E[L0], forward and backward, in fp32 on one thread. All candidates alternate in one process, in a
different order in each repetition; the table shows medians, and the median of the ratios to C within a repetition.

    C                 smatcli/experts/merge_native.c
    eager             smatcli/experts/merge_eager.py (SMAT_MERGE=eager), a loop over chunks of P
    compiled          torch.compile of the definition, gradients by autograd
    compiled, odds    the same with the formulas of the C kernel (no logarithm, one exponential per entry)
    compiled chunks   torch.compile of one chunk (formulas of the C kernel, explicit gradients), in the eager version's loop over chunks

Compile times are those of the first call, with empty caches and one compiler process.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from math import exp
from typing import Any

import torch
from torch import Tensor

from smatcli.device import reuse_memory
from smatcli.experts import merge_kernels, merge_native
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import merge, normalise
from smatcli.experts.merge_eager import Gate
from smatcli.experts.noise import key_tensor, uniform_at

SHAPE = HardConcrete()
STRETCH, GAMMA, SHIFT = SHAPE.stretch, SHAPE.gamma, SHAPE.l0_shift
ODDS_L0 = exp(SHIFT)
CHUNK = 2**17  # mask entries per chunk, as in merge_eager
LIMIT = 40.0
Gradients = tuple[Tensor, Tensor, Tensor]  # of theta_delta [P], log_alpha [M, P] and alpha [M]
Result = tuple[Tensor, Tensor, Tensor, Gradients]  # theta [P], non-zeros [M], E[L0] / P [M]


def definition(pre: Tensor, delta: Tensor, log_alpha: Tensor, alpha: Tensor, keys: Tensor | None, columns: Tensor) -> tuple[Tensor, ...]:
    """Return theta [P], non-zeros [M] and the sum of E[L0] [M] by the formulas of `HardConcrete`. A sum replaces the product with alpha."""
    logits = log_alpha if keys is None else log_alpha + torch.logit(uniform_at(keys, columns, log_alpha))
    z = SHAPE.gate(logits, SHAPE.beta)
    return pre + delta * (alpha[:, None] * z).sum(0), (z > 0).sum(1), torch.sigmoid(log_alpha + SHIFT).sum(1)


def odds(log_alpha: Tensor, keys: Tensor | None, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return (e, y), where e = exp(log_alpha) and y / (1 + y) is the unstretched gate."""
    e = log_alpha.clamp(-LIMIT, LIMIT).exp()
    x = e
    if keys is not None:
        u = uniform_at(keys, columns, log_alpha)
        x = e * (u / (1 - u))
    return e, x * x.sqrt()


def by_odds(pre: Tensor, delta: Tensor, log_alpha: Tensor, alpha: Tensor, keys: Tensor | None, columns: Tensor) -> tuple[Tensor, ...]:
    """Return the same as `definition`, by the formulas of merge_native.c."""
    e, y = odds(log_alpha, keys, columns)
    z = (y / (1 + y) * STRETCH + GAMMA).clamp(0, 1)
    w = e * ODDS_L0
    return pre + delta * (alpha[:, None] * z).sum(0), (z > 0).sum(1), (w / (1 + w)).sum(1)


def gradients_by_odds(
    grad: Tensor, share: Tensor, tensors: tuple[Tensor, Tensor, Tensor], keys: Tensor | None, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `by_odds`, given those of theta [n] and of the sum of E[L0] [M]; `tensors`: delta, log_alpha, alpha."""
    delta, log_alpha, alpha = tensors
    e, y = odds(log_alpha, keys, columns)
    under = 1 / (1 + y)
    s = y * under
    t = s * STRETCH + GAMMA
    z, down = t.clamp(0, 1), grad * delta
    w = e * ODDS_L0
    below = 1 / (1 + w)
    slope = torch.where((t > 0) & (t < 1), s * under * (STRETCH / SHAPE.beta), 0.0)
    d_log_alpha = alpha[:, None] * down * slope + share[:, None] * (w * below * below)
    return grad * (alpha[:, None] * z).sum(0), d_log_alpha, (z * down).sum(1)


class Chunked:
    """The merge and its gradients for a given gradient of theta, in a loop over compiled chunks."""

    def __init__(self) -> None:
        self.forward: Callable[..., tuple[Tensor, ...]] = torch.compile(by_odds, dynamic=False)
        self.backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.compile(gradients_by_odds, dynamic=False)

    def __call__(self, pre: Tensor, leaves: Gradients, keys: Tensor | None, weight: Tensor) -> Result:
        delta, log_alpha, alpha = (t.detach() for t in leaves)
        experts, size = log_alpha.shape
        theta, d_delta, d_log_alpha = torch.empty_like(pre), torch.empty_like(pre), torch.empty_like(log_alpha)
        nonzeros, l0, d_alpha = (torch.zeros(experts) for _ in range(3))
        for part, columns in chunks(experts, size):
            theta[part], counted, total = self.forward(pre[part], delta[part], log_alpha[:, part], alpha, keys, columns)
            nonzeros += counted
            l0 += total
        share = torch.full((experts,), 1 / size)
        for part, columns in chunks(experts, size):
            tensors = (delta[part], log_alpha[:, part], alpha)
            d_delta[part], d_log_alpha[:, part], d_alpha_part = self.backward(weight[part], share, tensors, keys, columns)
            d_alpha += d_alpha_part
        return theta, nonzeros, l0 / size, (d_delta, d_log_alpha, d_alpha)


def chunks(experts: int, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of P and the numbers of their columns."""
    step = CHUNK // experts
    for start in range(0, size, step):
        stop = min(start + step, size)
        yield slice(start, stop), torch.arange(start, stop, dtype=torch.int32)


def own(wanted: str) -> Callable[[Tensor, Gradients, int | None, Tensor], Result]:
    """Return a function that runs the package's merge with the kernel `wanted` (a value of SMAT_MERGE)."""

    def work(pre: Tensor, leaves: Gradients, seed: int | None, weight: Tensor) -> Result:
        os.environ[merge_kernels.VARIABLE] = wanted
        delta, log_alpha, alpha = leaves
        merged = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=seed))
        grads = torch.autograd.grad([merged.theta, merged.expected_l0], leaves, [weight, torch.ones_like(alpha)])
        return merged.theta.detach(), merged.nonzeros, merged.expected_l0.detach(), grads  # type: ignore[return-value]

    return work


def whole(formulas: Callable[..., tuple[Tensor, ...]]) -> Callable[[Tensor, Gradients, int | None, Tensor], Result]:
    """Return a function that runs `formulas`, compiled for all of P at once, with gradients by autograd."""
    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(formulas, dynamic=False)

    def work(pre: Tensor, leaves: Gradients, seed: int | None, weight: Tensor) -> Result:
        delta, log_alpha, alpha = leaves
        keys = None if seed is None else key_tensor([seed], len(alpha))[0]
        columns = torch.arange(log_alpha.shape[1], dtype=torch.int32)
        theta, nonzeros, l0 = compiled(pre, delta, log_alpha, alpha, keys, columns)
        size = log_alpha.shape[1]
        grads = torch.autograd.grad([theta, l0], leaves, [weight, torch.full_like(alpha, 1 / size)])
        return theta.detach(), nonzeros, l0.detach() / size, grads  # type: ignore[return-value]

    return work


def chunked() -> Callable[[Tensor, Gradients, int | None, Tensor], Result]:
    """Return a function that runs `Chunked` with the keys of a seed."""
    work = Chunked()
    return lambda pre, leaves, seed, weight: work(pre, leaves, None if seed is None else key_tensor([seed], len(leaves[2]))[0], weight)


def spent() -> float:
    """Return the CPU seconds so far of this process and of the compilers that it started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def error(result: Result, expected: Result) -> float:
    """Return the largest relative error (by norm) of theta, E[L0] and the three gradients."""
    pairs = zip((result[0], result[2], *result[3]), (expected[0], expected[2], *expected[3]), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def compare(args: argparse.Namespace, experts: int, noise: str) -> None:
    """Measure all candidates and print one table."""
    torch.manual_seed(0)
    pre, delta, weight = torch.randn(3, args.parameters)
    log_alpha = torch.randn(experts, args.parameters)
    alpha = normalise(torch.rand(experts))
    leaves = (delta.requires_grad_(), log_alpha.requires_grad_(), alpha.requires_grad_())
    seed = 1 if noise == "stochastic" else None
    torch._dynamo.reset()
    works: dict[str, Any] = {"C": own("fused"), "eager": own("eager")}
    works |= {"compiled": whole(definition), "compiled, odds": whole(by_odds), "compiled chunks": chunked()}
    for name in filter(None, args.without.split(",")):
        del works[name]
    first: dict[str, tuple[float, float]] = {}
    expected: Result | None = None
    errors = {}
    for name, work in works.items():
        wall, cpu = time.perf_counter(), spent()
        result = work(pre, leaves, seed, weight)
        first[name] = (time.perf_counter() - wall, spent() - cpu)
        expected = expected or result
        errors[name] = error(result, expected)
        del result
    del expected
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for i in range(args.repeat):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begun = time.process_time()
            works[name](pre, leaves, seed, weight)
            times[name].append(time.process_time() - begun)
    print(f"\nP = {args.parameters:,}, M = {experts}, {noise}, {args.repeat} repetitions")
    print(f"{'':18}{'CPU s':>8}{'of C':>8}{'(least, most)':>16}{'first call: s':>15}{'CPU s':>8}{'error':>10}")
    for name in names:
        ratios = [a / b for a, b in zip(times[name], times["C"], strict=True)]
        span = f"({min(ratios):.2f}, {max(ratios):.2f})"
        cells = f"{statistics.median(times[name]):8.3f}{statistics.median(ratios):8.2f}{span:>16}"
        print(f"{name:18}{cells}{first[name][0]:15.1f}{first[name][1]:8.1f}{errors[name]:10.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=21_600_000, help="P; default: about ViT-S/16")
    parser.add_argument("--experts", default="8,16")
    parser.add_argument("--noise", default="deterministic,stochastic")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--without", default="", help="candidates to skip, separated by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()  # as `smat train` does
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        wall, cpu = time.perf_counter(), spent()
        merge_native.library()
        print(f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; C: compiled in {time.perf_counter() - wall:.1f} s", end="")
        print(f", {spent() - cpu:.1f} CPU s")
        for experts in map(int, args.experts.split(",")):
            for noise in args.noise.split(","):
                compare(args, experts, noise)


if __name__ == "__main__":
    main()
