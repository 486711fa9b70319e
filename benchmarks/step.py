"""Compare the cost of a meta-training task: the plain algorithm (eager, tensor by tensor, eight forward passes) and the fast path.

    python benchmarks/step.py                                                    micro ViT, half a minute
    python benchmarks/step.py --model vit_small_patch16_224 --threads 2          full size: 11 GB for the plain side, minutes
    python benchmarks/step.py --model ... --sides fast:fp32 --experts 1,4,8,16,32
    python benchmarks/step.py --sides plain:fp32,fast:fp32,fast:bf16+compile,fast:fp32+recompute=false,fast:fp32+chunk=32

A side is plain or fast, a precision and, for fast, options for running the network. Each side computes loss and gradients of the same tasks
in a separate process, without optimizer. The table shows CPU seconds (GPU: seconds), tasks per second, peak memory of the process (GPU: of
the allocator), and the distance of the gradients from those of the first side. The first repetition is not counted.
"""

import argparse
import csv
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smatcli.config.methods import MaskConfig, SmatConfig, TeacherConfig
from smatcli.device import choose_device, choose_precision, reuse_memory
from smatcli.experts.masks import noise
from smatcli.methods.plain import plain_loss
from smatcli.methods.running.execution import Execution
from smatcli.methods.smat import Injected, SmatMethod
from smatcli.seams import Episode, Support

COLUMNS = ["model", "experts", "side", "cpu_s_per_task", "wall_s_per_task", "tasks_per_second", "peak_mib", "before_mib", "grad_error"]


def build(args: argparse.Namespace, precision: str) -> SmatMethod:
    """Return the method on the device, with random experts."""
    torch.manual_seed(0)
    device = choose_device(args.device)
    net: nn.Module
    if args.model == "micro":
        net = VisionTransformer(img_size=args.size, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=0)
    else:
        net = create_model(args.model, img_size=args.size, num_classes=0)
    chosen = choose_precision(precision, device, int(net.num_features))  # type: ignore[arg-type]
    masks = MaskConfig(noise=args.noise)
    config = SmatConfig(experts=int(args.experts), masks=masks, teacher=TeacherConfig(pretrained=True))
    method = SmatMethod(config, chosen.apply(net)).to(device)
    method.backbone.to(device)
    method.precision = chosen
    with torch.no_grad():
        method.theta_delta.normal_(std=1e-3)
    return method.train()


def episode(args: argparse.Namespace, index: int) -> Episode:
    """Return a task of noise."""
    generator, device = torch.Generator().manual_seed(index), choose_device(args.device)
    labels = [torch.arange(n) % args.ways for n in (args.support, args.query)]
    images = [torch.randn(n, 3, args.size, args.size, generator=generator) for n in (args.support, args.query)]
    shifted = [x + y[:, None, None, None] / args.ways for x, y in zip(images, labels, strict=True)]
    moved = [t.to(device) for t in (*shifted, *labels)]
    return Episode(Support(moved[0], moved[2], args.ways), moved[1], moved[3], "random", index, 0)


def step(method: SmatMethod, tasks: list[Episode], plain: bool) -> None:
    """Compute the gradients of the mean loss of a meta-batch."""
    device = method.theta_pre.device
    for p in method.parameters():
        p.grad = None
    noises = [torch.Generator(device).manual_seed(k) for k in range(len(tasks))]
    if not plain:
        method.begin(tasks, noises)
    for task, generator in zip(tasks, noises, strict=True):
        if plain:
            router = noise((method.config.experts,), generator, method.theta_pre)
            # The fast path computes the masks' noise from a seed; the plain one draws a whole tensor.
            u = None
            if method.config.masks.noise == "stochastic":
                u = noise(tuple(method.log_alpha.shape), generator, method.theta_pre)
            loss = plain_loss(method, task, Injected(u, router))
        else:
            loss = method.loss(task, generator).total
        (loss / len(tasks)).backward()
    if not plain:
        method.end()


def child(args: argparse.Namespace) -> None:
    """Measure one side; print the result as JSON, and save the gradients."""
    torch.set_num_threads(args.threads)
    kind, precision, options = parse_side(args.side)
    if kind == "fast":
        reuse_memory()  # as `smat train` does
    method = build(args, precision)
    if kind == "fast":  # the defaults of `smat train`
        method.execution = Execution(method.backbone, **{"recompute": "auto", "lean": True, **options})
    tasks = [episode(args, k) for k in range(args.tasks)]
    device = method.theta_pre.device
    before, best = peak(device), (float("inf"), float("inf"))
    for repeat in range(args.repeat + 1):
        wait(device)
        cpu, wall = time.process_time(), time.perf_counter()
        step(method, tasks, plain=kind == "plain")
        wait(device)
        spent = (time.process_time() - cpu) / args.tasks, (time.perf_counter() - wall) / args.tasks
        if repeat or not args.repeat:
            best = min(best, spent)
        if repeat == 0 and args.gradients:
            grads = {"delta": method.theta_delta.grad, "masks": method.log_alpha.grad[:, ::61], "router": method.router.keys.grad}  # type: ignore[index]
            torch.save({name: grad.detach().cpu().clone() for name, grad in grads.items() if grad is not None}, args.gradients)
            del grads  # else the gradient of log_alpha would add to the next repetition's peak
    print(json.dumps({"cpu": best[0], "wall": best[1], "peak": peak(device), "before": before, "compiled": str(method.execution.compiled)}))


def parse_side(side: str) -> tuple[str, str, dict[str, Any]]:
    """Parse a side, such as 'fast:bf16+compile+chunk=32', into (fast, bf16, options of Execution)."""
    kind, _, rest = side.partition(":")
    precision, *options = (rest or "fp32").split("+")
    settings: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        settings[name] = (
            True if not value else int(value) if value.isdecimal() else value == "true" if value in ("true", "false") else value
        )
    return kind, precision, settings


def wait(device: torch.device) -> None:
    """Wait until the GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> float:
    """Return the peak memory so far in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def relative(grads: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """Return |grads - expected| / |expected| of each group of parameters as text."""
    return " ".join(f"{name} {float((grads[name] - expected[name]).norm() / expected[name].norm()):.1e}" for name in expected)


def main() -> None:
    """Run every side in a separate process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a timm ViT")
    parser.add_argument("--size", type=int, default=0, help="pixels; 0: 64 for micro, else 128")
    for name, value in {"ways": 5, "support": 20, "query": 100, "tasks": 1, "threads": 1, "repeat": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--experts", default="8", help="M, or several: 1,4,8,16,32")
    parser.add_argument("--noise", default="deterministic", choices=["deterministic", "stochastic"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sides", default="plain:fp32,fast:fp32,fast:bf16")
    parser.add_argument("--csv", default="", help="also write the table to this file")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.size = args.size or (64 if args.model == "micro" else 128)
    if args.side:
        child(args)
        return
    rows: list[list[Any]] = []
    print(f"{'M':>3} {'side':26} {'CPU s/task':>10} {'s/task':>8} {'tasks/s':>8} {'peak MiB':>9} {'(before)':>9}  gradient error")
    with tempfile.TemporaryDirectory() as folder:
        for experts, side in itertools.product(args.experts.split(","), args.sides.split(",")):
            rows.append(measured(args, experts, side, Path(folder)))
            print(f"{rows[-1][1]:>3} {rows[-1][2]:26} {rows[-1][3]:10.2f} {rows[-1][4]:8.2f} {rows[-1][5]:8.2f} ", end="")
            print(f"{rows[-1][6]:9,.0f} {rows[-1][7]:9,.0f}  {rows[-1][8]}", flush=True)
    for experts in args.experts.split(","):
        mine = [row for row in rows if row[1] == experts]
        for row in mine[1:]:
            cpu, wall, most = (row[i] / mine[0][i] for i in (3, 4, 6))
            print(f"M = {experts}: {row[2]} takes {cpu:.2f} of {mine[0][2]}'s CPU seconds, {wall:.2f} of its time, {most:.2f} of its peak")
    if len(args.experts.split(",")) > 1:
        print("cost relative to the first M: " + ", ".join(f"{r[2]} M={r[1]} {r[3] / rows[0][3]:.2f}" for r in rows))
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


def measured(args: argparse.Namespace, experts: str, side: str, folder: Path) -> list[Any]:
    """Measure one side in a new process and return its row of the table."""
    kept = ["model", "size", "ways", "support", "query", "tasks", "threads", "repeat", "noise", "device"]
    given = [f"--{name}={getattr(args, name)}" for name in kept]
    grads, first = folder / f"{experts}-{side}.pt", folder / f"{experts}-first.pt"
    command = [sys.executable, __file__, *given, f"--experts={experts}", f"--side={side}", f"--gradients={grads}"]
    # Threads that spin at barriers would waste CPU seconds on a shared machine; `smat` also sets PASSIVE.
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    if done.returncode:
        sys.exit(f"{side} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    numbers = json.loads(done.stdout.strip().splitlines()[-1])
    error = ""
    if first.exists():
        error = relative(torch.load(grads, weights_only=True), torch.load(first, weights_only=True))
        grads.unlink()
    else:
        grads.rename(first)
    cost = [numbers["cpu"], numbers["wall"], 1 / numbers["wall"]]
    return [args.model, experts, side, *cost, numbers["peak"], numbers["before"], error]


if __name__ == "__main__":
    main()
