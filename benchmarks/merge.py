"""Time masks, merge and expected L0, forward and backward, by autograd and in closed form.

The bandwidth is compared with that of a copy on the same device: log_alpha is read twice and its gradient is written, once for all tasks of
a meta-batch. On a CPU, times are CPU times of all threads, which exclude other work on the machine; on a GPU, they are wall-clock times.
`merge_compile.py` compares the C kernel with `torch.compile`.

python benchmarks/merge.py [--parameters 1000000] [--experts 8] [--device cpu] [--threads 1] [--repeat 10]
"""

import argparse
import csv
import time
from collections.abc import Callable

import torch

from smatcli.experts.compress import CompressedExperts, Merger
from smatcli.experts.masks import HardConcrete, noise
from smatcli.experts.merge import merge, merge_reference, merge_tasks, normalise
from smatcli.experts.merge_eager import Gate

SHAPE = HardConcrete()
TASKS = 4


def measure(work: Callable[[], object], device: torch.device, repeat: int) -> tuple[float, float]:
    """Return (milliseconds, additional peak MiB on CUDA) of the fastest of `repeat` calls after a warm-up call."""
    work()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = float("inf")
    base = peak = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
    for _ in range(repeat):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - base
    return 1000 * best, peak / 2**20


def main() -> None:
    """Measure and print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--csv", default="", help="also write the table of the training merges to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    generator = torch.Generator(device).manual_seed(0)
    size, experts = args.parameters, args.experts
    pre, delta, weight = torch.randn(3, size, device=device, generator=generator)
    log_alpha = torch.randn(experts, size, device=device, generator=generator)
    alpha = normalise(torch.rand(experts, device=device, generator=generator))
    leaves = [t.requires_grad_() for t in (delta, log_alpha, alpha)]

    def plain(stochastic: bool) -> None:
        u = noise((experts, size), generator, log_alpha) if stochastic else None
        theta = merge_reference(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=u))
        l0 = SHAPE.expected_l0_element(log_alpha).mean(1)
        torch.autograd.grad((theta * weight).sum() + l0.sum(), leaves)

    def fast(seed: int | None) -> None:
        merged = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=seed))
        torch.autograd.grad((merged.theta * weight).sum() + merged.expected_l0.sum(), leaves)

    def tasks(seeds: list[int] | None) -> None:
        merged = merge_tasks(pre, delta, log_alpha, alpha.expand(TASKS, experts), SHAPE, seeds=seeds)
        torch.autograd.grad(torch.stack([(m.theta * weight).sum() + m.expected_l0.sum() for m in merged]).sum(), leaves)

    def each(seeds: list[int | None]) -> None:
        for leaf in leaves:
            leaf.grad = None
        for seed in seeds:
            merged = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=seed))
            ((merged.theta * weight).sum() + merged.expected_l0.sum()).backward()

    source, target = log_alpha.detach(), torch.empty_like(log_alpha)

    sparse = log_alpha.detach() * 1.0 - 3.7
    compressed = CompressedExperts.of(SHAPE.eval_gate(row) for row in sparse)
    merger = Merger(pre, delta.detach(), compressed)
    bits = torch.ones(experts, device=device)
    merger(bits)

    def flip() -> None:
        bits[0] = 1 - bits[0]
        merger(bits)

    print(
        f"P = {size:,}, M = {experts}, {device}, {args.threads} thread(s); compressed: {compressed.nbytes / 2**20:.1f} MiB "
        f"at sparsity {1 - sum(compressed.nonzeros) / experts / size:.2f} (dense masks {4 * experts * size / 2**20:.0f} MiB)"
    )
    variants: dict[str, Callable[[], object]] = {
        "reference, deterministic": lambda: plain(stochastic=False),
        "reference, stochastic": lambda: plain(stochastic=True),
        "closed form, deterministic": lambda: fast(None),
        "closed form, stochastic": lambda: fast(1),
        "4 tasks one by one, deterministic": lambda: each([None] * TASKS),
        "4 tasks at once, deterministic": lambda: tasks(None),
        "4 tasks one by one, stochastic": lambda: each(list(range(TASKS))),
        "4 tasks at once, stochastic": lambda: tasks(list(range(TASKS))),
        "inference: dense merge": lambda: merge(pre, delta.detach(), sparse, alpha.detach(), Gate(SHAPE, training=False)),
        "inference: merge from compressed": lambda: merger(alpha.detach()),
        "inference: one flip": flip,
    }
    copied = measure(lambda: target.copy_(source), device, args.repeat)[0]
    rate = 8 * experts * size / copied / 1e6
    print(f"a copy of log_alpha: {copied:.2f} ms, {rate:.1f} GB/s read and written")
    rows: list[list[object]] = []
    for name, work in variants.items():
        milliseconds, peak = measure(work, device, args.repeat)
        memory = f" {peak:9.0f} MiB" if device.type == "cuda" else ""
        moved = ""
        if not name.startswith("inference"):
            # The minimum of any implementation: log_alpha is read in both directions, and its gradient is written.
            achieved = 12 * experts * size / milliseconds / 1e6
            moved = f" {achieved:7.2f} GB/s, {achieved / rate:5.2f} of the copy's"
            rows.append([name, size, experts, milliseconds, achieved, achieved / rate])
        print(f"{name:38} {milliseconds:9.2f} ms{moved}{memory}")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([["variant", "parameters", "experts", "ms", "gb_s", "share_of_copy"], *rows])


if __name__ == "__main__":
    main()
