"""Compare the cost of the flip search with that of its forward passes (goal: at most 1.3 times) and of a plain implementation.

    python benchmarks/flip.py [--width 128 --depth 6 --experts 8 --density 0.1 --episodes 5 --threads 1 --csv FILE]

The sides alternate in one process on the same episodes:
- search: `Flip.adapt` and the prediction of the query.
- forwards: one forward pass of the support set per state that the search measured, and one of the query, with a fixed theta.
- dense: Algorithm 2 as written: for every flip in every round, all masks are merged densely from log_alpha, and support and query are
  embedded; nothing is cached.
- batched: the search with all single flips of a state in one forward pass (on a GPU, the search times both and uses the faster one).
On a shared CPU, compare the CPU seconds.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from smatcli.adaptation.flip import Flip, flipped, nearest_bits
from smatcli.config.methods import SmatConfig
from smatcli.config.schema import FlipConfig
from smatcli.device import choose_device, choose_precision
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.smat import SmatMethod
from smatcli.seams import Support, Task

GOAL = 1.3


def make_method(args: argparse.Namespace) -> SmatMethod:
    """Return an untrained SMAT method whose inference masks have a share of about `density` non-zeros."""
    torch.manual_seed(0)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device, args.width)
    vit = VisionTransformer(
        img_size=args.size, patch_size=args.patch, embed_dim=args.width, depth=args.depth, num_heads=max(1, args.width // 32), num_classes=0
    )
    method = SmatMethod(SmatConfig.model_validate({"experts": args.experts}), precision.apply(vit)).to(device).eval()
    method.backbone.to(device)
    method.precision = precision
    print(precision)
    with torch.no_grad():
        method.theta_delta.normal_(std=0.02)
        on = torch.rand_like(method.log_alpha) < args.density
        method.log_alpha.copy_(torch.where(on, 2.0, -4.0))
    return method


def wait(device: torch.device) -> None:
    """Wait until the GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of a call."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def dense_search(method: SmatMethod, support: Support, query: torch.Tensor, rounds: int) -> tuple[int, ...]:
    """Run Algorithm 2 without a cache; return the final bits."""

    def measured(scores: torch.Tensor) -> float:
        theta = method.merge(scores / scores.sum().clamp(min=1), training=False).theta
        features = method.embed(support.images, theta)
        centres = prototypes(features, support.labels, support.ways)
        cosine_logits(method.embed(query, theta), centres, method.scale)
        return float(F.cross_entropy(cosine_logits(features, centres, method.scale), support.labels))

    alpha = method.inference_scores(support)
    measured(alpha)
    bits = nearest_bits(alpha)
    loss = measured(alpha.new_tensor(bits))
    for _ in range(rounds):
        for m in range(len(bits)):
            other = flipped(bits, m)
            other_loss = measured(alpha.new_tensor(other))
            if other_loss < loss:
                bits, loss = other, other_loss
    return bits


def main() -> None:
    """Print milliseconds of each episode, and the median ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "width": 128,
        "depth": 6,
        "size": 64,
        "patch": 8,
        "experts": 8,
        "ways": 5,
        "shots": 5,
        "queries": 10,
        "rounds": 2,
        "episodes": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--density", type=float, default=0.1, help="share of non-zeros of a mask")
    parser.add_argument("--loss", default="support", choices=["support", "leave-one-out"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    method = make_method(args)
    device = method.theta_pre.device
    config = FlipConfig.model_validate({"rounds": args.rounds, "loss": args.loss})
    searches = {"search": Flip(config), "batched": Flip(config, batched=True)}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in ("search", "forwards", "dense", "batched")}
    with torch.inference_mode():
        for episode in range(-1, args.episodes):  # the first episode is a warm-up
            images = torch.randn(args.ways * args.shots, 3, args.size, args.size, device=device)
            query = torch.randn(args.ways * args.queries, 3, args.size, args.size, device=device)
            support = Support(images, torch.arange(args.ways, device=device).repeat_interleave(args.shots), args.ways)
            task = method.task(support)
            states: dict[str, int] = {}

            def work(side: str, task: Task = task, support: Support = support, query: torch.Tensor = query, states: dict = states) -> None:
                if side in searches:
                    classifier = searches[side].adapt(task, support)
                    states[side] = classifier.info["evaluations"]
                    classifier.predict(query)
                elif side == "dense":
                    dense_search(method, support, query, args.rounds)
                else:
                    for _ in range(states["search"]):
                        task.embed(support.images, task.theta)
                    task.embed(query, task.theta)

            spent = {side: timed(lambda side=side: work(side), device) for side in times}  # type: ignore[misc]
            if episode >= 0:
                for side, pair in spent.items():
                    times[side].append(pair)
                listed = ", ".join(f"{side} {1e3 * wall:.1f} ms (CPU {1e3 * cpu:.1f})" for side, (wall, cpu) in spent.items())
                print(f"episode {episode}: {listed}; {states['search']} states", flush=True)
    rows: list[tuple[Any, ...]] = []
    for side, pairs in times.items():
        ratios = [[a[i] / b[i] for a, b in zip(pairs, times["forwards"], strict=True)] for i in (0, 1)]
        middle = [statistics.median(pair[i] for pair in pairs) for i in (0, 1)]
        rows.append((side, *middle, *(statistics.median(column) for column in ratios)))
    print(f"{'side':10} {'wall s':>8} {'CPU s':>8} {'wall / forwards':>16} {'CPU / forwards':>15}")
    for side, wall, cpu, wall_ratio, cpu_ratio in rows:
        print(f"{side:10} {wall:8.3f} {cpu:8.3f} {wall_ratio:16.3f} {cpu_ratio:15.3f}")
    print(f"search / forwards, CPU seconds: {rows[0][4]:.3f}, goal {GOAL}: {'met' if rows[0][4] <= GOAL else 'MISSED'}")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([("side", "wall", "cpu", "wall_ratio", "cpu_ratio"), *rows])


if __name__ == "__main__":
    main()
