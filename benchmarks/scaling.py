"""Measure how meta-training scales from 1 to 2 processes on this CPU, or compute how it scales on more GPUs.

    python benchmarks/scaling.py measure [--processes 1,2] [--tasks 4] [--experts 4]      a ViT of 2.7 M parameters; minutes
    python benchmarks/scaling.py compute [--model vit_small_patch16_224] [--experts 8]    bytes, FLOPs, memory, and a simulation

`measure` trains on images of noise with `smat train --profile` and prints what the first process spent per update: wall-clock seconds, CPU
seconds, and seconds in the all-reduce (including the wait for other processes). `compute` counts FLOPs with torch's counter: the number of
passes per image on a small backbone, and one pass of the large backbone on the meta device. Rates are options; they are assumptions.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

RECIPE = """
kind: train
run: {root}/run
device: cpu
precision: fp32
threads: 1
backbone:
  name: vit_tiny_patch16_224
  args: {{patch_size: 8, depth: 6}}
  image_size: 64
  weights: none
data: {{root: {root}, train: [noise]}}
episode: {{kind: fixed, ways: 5, shots: 1, queries: 3}}
method: {{name: smat, experts: {experts}}}
train: {{steps: 7, meta_batch: {tasks}, valid_every: 100, valid_episodes: 1, checkpoint_every: 100}}
"""


def measured(root: Path, processes: int, experts: int, tasks: int) -> dict[str, tuple[float, float]]:
    """Return {phase: (wall-clock seconds, CPU seconds)} per update of the first process."""
    from smatcli.data.stores.store import write_store

    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    classes = [(str(i), int(i >= 5), rng.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)) for i in range(10)]
    write_store(root / "noise.h5", "noise", 64, classes)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root, experts=experts, tasks=tasks))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, "-m", "smatcli", "train", str(root / "recipe.yaml"), "--profile"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with (root / "run/profile/phases.csv").open(newline="") as file:
        return {row["phase"]: (float(row["wall_s"]), float(row["cpu_s"])) for row in csv.DictReader(file)}


def measure(args: argparse.Namespace) -> None:
    """Print one line per number of processes."""
    print(f"{'processes':>9} {'tasks each':>10} {'wall s':>8} {'CPU s':>8} {'CPU s w/o reduce':>18} {'all-reduce wall s':>18}")
    for processes in map(int, args.processes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            phases = measured(Path(folder) / "data", processes, args.experts, args.tasks)
        (wall, cpu), (reduce, reduce_cpu) = phases["total"], phases.get("all-reduce", (0.0, 0.0))
        print(f"{processes:9} {args.tasks // processes:10} {wall:8.3f} {cpu:8.3f} {cpu - reduce_cpu:18.3f} {reduce:18.3f}", flush=True)


@dataclass(frozen=True)
class Cost:
    """Numbers of parameters in one process, and FLOPs per task."""

    parameters: int
    experts: int
    rest: int  # parameters of router and multipliers
    flops: float

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the fp32 gradients summed per update: theta_delta, log_alpha, router, multipliers."""
        return 4 * ((1 + self.experts) * self.parameters + self.rest)

    def state_bytes(self, processes: int, split: bool) -> float:
        """Return the bytes of theta_pre and of trained values, gradients and Adam's two moments (`split`: divided over the processes)."""
        trained = (1 + self.experts) * self.parameters + self.rest
        return 4 * (self.parameters + trained * (2 + 2 / (processes if split else 1)))


def forward_flops(net: "nn.Module", size: int) -> float:
    """Return the FLOPs of one image through a backbone, counted on the meta device without computing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.to("meta")(torch.empty(1, 3, size, size, device="meta"))
    return float(counter.get_total_flops())


def passes() -> tuple[float, float]:
    """Return the cost of a support image and of a query image in a training task, in forward passes of a small backbone."""
    import torch
    from timm.models.vision_transformer import VisionTransformer
    from torch.utils.flop_counter import FlopCounterMode

    from smatcli.config.methods import SmatConfig
    from smatcli.methods.smat import SmatMethod
    from smatcli.seams import Episode, Support

    def network() -> VisionTransformer:
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=0)

    torch.manual_seed(0)
    method = SmatMethod(SmatConfig(experts=2), network()).train()

    def flops(support: int, query: int) -> int:
        labels = [torch.arange(n) % 2 for n in (support, query)]
        images = [torch.randn(n, 3, 32, 32) for n in (support, query)]
        episode = Episode(Support(images[0], labels[0], 2), images[1], labels[1], "noise", 0, 0)
        with FlopCounterMode(display=False) as counter:
            method.loss(episode, torch.Generator().manual_seed(0)).total.backward()
        method.zero_grad(set_to_none=True)
        return int(counter.get_total_flops())

    base, single = flops(4, 4), forward_flops(network(), 32)
    return (flops(8, 4) - base) / 4 / single, (flops(4, 8) - base) / 4 / single


def cost(model: str, experts: int, support: int, query: int) -> Cost:
    """Return the parameters of the method with a backbone, and the FLOPs of a training task at 224 px."""
    import torch
    from timm import create_model

    from smatcli.config.methods import RouterConfig
    from smatcli.experts.router import Router

    with torch.device("meta"):
        net = create_model(model, num_classes=0)
    width, size = int(net.num_features), sum(p.numel() for p in net.parameters())  # type: ignore[arg-type]
    router = Router(RouterConfig(), width, experts)
    of_support, of_query = passes()
    rest = sum(p.numel() for p in router.parameters()) + experts
    return Cost(size, experts, rest, forward_flops(net, 224) * (support * of_support + query * of_query))


def simulate(
    costs: Cost, gpus: int, tasks: int, rate: float, bandwidth: float, latency: float, memory: float
) -> tuple[float, float, float]:
    """Return seconds (compute, ring all-reduce, optimizer) per update on the busiest of `gpus` GPUs.

    Nothing overlaps, because the gradients of theta_delta and log_alpha are complete only after the last operation of the backward pass.
    """
    compute = -(-tasks // gpus) * costs.flops / rate
    moved = 2 * (gpus - 1) / gpus * costs.gradient_bytes
    optimizer = 7 * costs.gradient_bytes / memory  # reads gradient, value, two moments; writes value, two moments
    return compute, moved / bandwidth + 2 * (gpus - 1) * latency, optimizer


def compute(args: argparse.Namespace) -> None:
    """Print the memory and communication of a process, and the simulation."""
    costs = cost(args.model, args.experts, args.support, args.query)
    print(f"{args.model}, {args.experts} experts: {costs.parameters:,} backbone parameters, {costs.rest:,} of router and multipliers")
    print(f"gradients summed per update: {costs.gradient_bytes / 1e6:,.1f} MB")
    for n in (2, 8, 64):
        print(f"  sent and received by each of {n} processes (ring): {2 * (n - 1) / n * costs.gradient_bytes / 1e6:,.1f} MB")
    print(f"values, gradients and Adam's moments in a process: {costs.state_bytes(1, split=False) / 1e6:,.0f} MB")
    for n in (2, 8, 64):
        print(f"  with train.shard_optimizer over {n} processes: {costs.state_bytes(n, split=True) / 1e6:,.0f} MB")
    print(f"one task ({args.support} support and {args.query} query images, 224 px): {costs.flops / 1e12:.2f} TFLOP")
    print(f"simulated at {args.rate:g} TFLOP/s, memory {args.memory:g} GB/s, latency {1e6 * args.latency:g} us per hop:")
    heads = ("GPUs", "tasks", "GB/s", "compute ms", "all-reduce ms", "optimizer ms", "tasks/s", "efficiency")
    print("".join(f"{head:>{width}}" for head, width in zip(heads, (5, 7, 7, 12, 15, 14, 9, 12), strict=True)))
    for gpus, bandwidth in ((1, args.inside), (8, args.inside), (64, args.between)):
        for tasks in sorted({gpus, 64}):
            times = simulate(costs, gpus, tasks, 1e12 * args.rate, 1e9 * bandwidth, args.latency, 1e9 * args.memory)
            alone = sum(simulate(costs, 1, tasks, 1e12 * args.rate, 1e9 * bandwidth, args.latency, 1e9 * args.memory))
            cells = [1000 * t for t in times]
            speed, share = tasks / sum(times), alone / sum(times) / gpus
            print(f"{gpus:5}{tasks:7}{bandwidth:7g}{cells[0]:12.1f}{cells[1]:15.1f}{cells[2]:14.1f}{speed:9.1f}{share:12.2f}")


def main() -> None:
    """Parse the options, then measure or compute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=("measure", "compute"))
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--tasks", type=int, default=4, help="measure: tasks per update")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--support", type=int, default=25, help="compute: support images per task")
    parser.add_argument("--query", type=int, default=75, help="compute: query images per task")
    parser.add_argument("--rate", type=float, default=100.0, help="compute: TFLOP/s that a GPU sustains (assumed)")
    parser.add_argument("--memory", type=float, default=2000.0, help="compute: GB/s of a GPU's memory (assumed)")
    parser.add_argument("--inside", type=float, default=200.0, help="compute: GB/s of the all-reduce inside a node of 8 (assumed)")
    parser.add_argument("--between", type=float, default=40.0, help="compute: GB/s of the all-reduce over 8 nodes (assumed)")
    parser.add_argument("--latency", type=float, default=1e-5, help="compute: seconds per hop of the ring (assumed)")
    args = parser.parse_args()
    (measure if args.what == "measure" else compute)(args)


if __name__ == "__main__":
    main()
