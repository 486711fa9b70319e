"""Measure which share of the rate of matrix products a training step reaches, and its shortest possible time at that rate.

    python benchmarks/mfu.py                                                      micro ViT
    python benchmarks/mfu.py --model vit_small_patch16_224 --precision bf16 --compile

torch counts the FLOPs of a step (forward passes and both backward passes); bytes are those of log_alpha and its gradient. The rates are
measured: the best of several square products in the step's precision, and a copy. The floor is the longer of the two resulting times.
A step computes the gradients of one meta-batch, without optimizer, on the tasks of step.py.
"""

import argparse
import csv
import time
from collections.abc import Callable

import torch
from step import build, episode, step, wait
from torch.utils.flop_counter import FlopCounterMode

from smatcli.device import reuse_memory
from smatcli.methods.running.execution import Execution


def seconds(work: Callable[[], object], device: torch.device, repeat: int) -> tuple[float, float]:
    """Return (wall-clock time, CPU time) of the fastest of `repeat` calls after a warm-up call."""
    best = (float("inf"), float("inf"))
    for k in range(repeat + 1):
        wait(device)
        start, cpu = time.perf_counter(), time.process_time()
        work()
        wait(device)
        if k:
            best = min(best, (time.perf_counter() - start, time.process_time() - cpu))
    return best


def product_rate(device: torch.device, dtype: torch.dtype, repeat: int) -> tuple[float, float]:
    """Return the FLOP/s of the fastest square matrix product, by wall-clock time and by CPU time."""
    best = (0.0, 0.0)
    for n in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        wall, cpu = seconds(lambda a=a, b=b: a @ b, device, repeat)  # type: ignore[misc]
        best = max(best, (2 * n**3 / wall, 2 * n**3 / max(cpu, 1e-9)))
    return best


def main() -> None:
    """Print counts, rates, the floor and the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a timm ViT")
    for name, value in {"size": 0, "ways": 5, "support": 20, "query": 100, "tasks": 1, "threads": 1, "repeat": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--experts", default="8")
    parser.add_argument("--noise", default="deterministic", choices=["deterministic", "stochastic"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", default="", help="also write the numbers to this file")
    args = parser.parse_args()
    args.size = args.size or (64 if args.model == "micro" else 128)
    torch.set_num_threads(args.threads)
    reuse_memory()
    method = build(args, args.precision)
    device = method.theta_pre.device
    tasks = [episode(args, k) for k in range(args.tasks)]
    method.execution = Execution(method.backbone, lean=not args.compile)  # recomputation does not count as useful work
    with FlopCounterMode(display=False) as counter:
        step(method, tasks, plain=False)
    flops = counter.get_total_flops()
    moved = 3 * method.log_alpha.numel() * method.log_alpha.element_size()
    method.execution = Execution(method.backbone, compile=args.compile, recompute="auto", lean=True)
    wall, cpu = seconds(lambda: step(method, tasks, plain=False), device, args.repeat)
    rate, cpu_rate = product_rate(device, torch.bfloat16 if args.precision == "bf16" else torch.float32, args.repeat)
    copy_to = torch.empty_like(method.log_alpha)
    copied, _ = seconds(lambda: copy_to.copy_(method.log_alpha.detach()), device, args.repeat)
    bandwidth = 2 * copy_to.numel() * copy_to.element_size() / copied
    floor = max(flops / rate, moved / bandwidth)
    print(f"{args.model}, {args.precision}, {device}, {args.tasks} task(s): {flops / 1e9:.1f} GFLOP, {moved / 2**20:.0f} MiB of masks")
    print(f"matrix product {rate / 1e9:.1f} GFLOP/s (per CPU second {cpu_rate / 1e9:.1f}), copy {bandwidth / 1e9:.1f} GB/s")
    print(f"floor {floor:.3f} s (products {flops / rate:.3f}, masks {moved / bandwidth:.3f}); step {wall:.3f} s (CPU {cpu:.3f})")
    print(
        f"share of the product rate: {flops / wall / rate:.2f} by wall-clock time, {flops / max(cpu, 1e-9) / cpu_rate:.2f} by CPU seconds"
    )
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            names = ["model", "precision", "gflop", "gflop_s", "floor_s", "step_s", "mfu"]
            row = [args.model, args.precision, flops / 1e9, rate / 1e9, floor, wall, flops / wall / rate]
            csv.writer(file).writerows([names, row])


if __name__ == "__main__":
    main()
