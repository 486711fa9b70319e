"""Compare the cost of fine-tuning an episode: PMF's loop as described in its paper, and `full`, `lora` and `joint`.

    python benchmarks/finetune.py [--width 128 --depth 6 --size 64 --ways 5 --shots 5 --queries 10 --steps 50 --episodes 3 --csv FILE]
    python benchmarks/finetune.py --sides full,whole   whole: `full`, with all tokens in the last block
    python benchmarks/finetune.py --groups 2,4         also `full` and `lora` with several episodes side by side

The plain side is written from the description of PMF (Hu et al., CVPR 2022). For every episode, it copies the network and runs Adam tensor
by tensor. Each step has one forward pass of the support set for the prototypes, one of its augmented copies for the loss, and one of the
query set for its accuracy; the query set is embedded again at the end. All sides use the same augmentation noise, so that they end at the
same parameters up to rounding (`theta differs`; Adam amplifies the rounding of bf16, so compare with --precision fp32). `-query` is the
plain side without the query in each step, which is also what `full` computes. All sides alternate episode by episode in one process; the
script prints the median of the CPU seconds (GPU: wall-clock seconds).
"""

import argparse
import copy
import csv
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from flip import make_method, timed
from torch import Tensor

from smatcli.adaptation.diffaugment import diff_augment
from smatcli.adaptation.full import Full
from smatcli.adaptation.grouped import adapt_many
from smatcli.adaptation.joint import Joint
from smatcli.adaptation.lora import LoraAdaptation
from smatcli.config.finetune import FullConfig, JointConfig, LoraAdaptConfig
from smatcli.device import reuse_memory
from smatcli.methods.smat import SmatMethod
from smatcli.seams import Support, Task

SIZES = {"width": 128, "depth": 6, "size": 64, "patch": 8, "experts": 8, "ways": 5, "shots": 5, "queries": 10, "steps": 50, "episodes": 3}


def plain(method: SmatMethod, task: Task, support: Support, query: Tensor, steps: int, lr: float, each_step: bool) -> Tensor:
    """Fine-tune one episode as in PMF; return the final theta [P]."""
    net = copy.deepcopy(method.backbone).eval().requires_grad_()
    names = dict(net.named_parameters())
    with torch.no_grad():
        for name, value in method.space.unflatten(task.theta).items():
            names[name].copy_(value)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, foreach=False, fused=False)
    images, labels = support.images.clone(), support.labels.clone()
    generator = torch.Generator().manual_seed(task.seed)

    def embed(pictures: Tensor) -> Tensor:
        with method.precision.autocast():
            features: Tensor = net(pictures)
        return features.float()

    def class_means(features: Tensor) -> Tensor:
        return torch.stack([features[labels == c].mean(0) for c in range(support.ways)])

    def logits(features: Tensor, centres: Tensor) -> Tensor:
        return task.scale * F.normalize(features, dim=1) @ F.normalize(centres, dim=1).T

    for _ in range(steps):
        optimizer.zero_grad()
        centres = class_means(embed(images))
        loss = F.cross_entropy(logits(embed(diff_augment(images, generator)), centres), labels)
        loss.backward()
        optimizer.step()
        if each_step:
            with torch.no_grad():
                logits(embed(query), centres).argmax(1)
    with torch.no_grad():
        centres = class_means(embed(images))
        logits(embed(query), centres).argmax(1)
    return method.space.flatten(net)


class Whole(Full):
    """`full` with all tokens in the last block."""

    name = "whole"

    def embedding(self, task: Task, several: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the task's own embedding."""
        return task.embed


def grouped(ours: Full | LoraAdaptation, task: Task, support: Support, count: int) -> Callable[[], object]:
    """Return a function that fine-tunes `count` episodes side by side, each with its own parameters and seed."""
    tasks = [replace(task, theta=task.theta.clone(), seed=i) for i in range(count)]
    supports = [replace(support, images=support.images.clone()) for _ in tasks]
    assert ours.rate is not None
    rates = [ours.rate] * count
    return lambda: adapt_many(ours, tasks, supports, rates)


def main() -> None:
    """Print the seconds of every episode and side, and the ratio of the medians to the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--sides", default="plain,-query,full,lora,joint")
    parser.add_argument("--groups", default="", help="numbers of episodes side by side, such as 2,4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reuse_memory()
    method = make_method(args)
    device, clock = method.theta_pre.device, 0 if method.theta_pre.device.type == "cuda" else 1
    options = {"lr": args.lr, "steps": args.steps}
    ours: dict[str, Full | LoraAdaptation | Joint] = {
        "full": Full(FullConfig.model_validate(options)),
        "lora": LoraAdaptation(LoraAdaptConfig.model_validate(options)),
        "joint": Joint(JointConfig.model_validate(options)),
        "whole": Whole(FullConfig.model_validate(options)),
    }
    times: dict[str, list[float]] = {side: [] for side in args.sides.split(",")}
    for episode in range(args.episodes):
        images = torch.randn(args.ways * args.shots, 3, args.size, args.size, device=device)
        query = torch.randn(args.ways * args.queries, 3, args.size, args.size, device=device)
        support = Support(images, torch.arange(args.ways, device=device).repeat_interleave(args.shots), args.ways)
        task = replace(method.task(support), seed=episode)
        ends: dict[str, Tensor] = {}
        for side, spent in times.items():

            def work(side: str = side, task: Task = task, support: Support = support, query: Tensor = query, ends: dict = ends) -> None:
                if side in ours:
                    adapted = ours[side].adapt(task, support)
                    adapted.predict(query)
                    ends[side] = adapted.theta
                else:
                    ends[side] = plain(method, task, support, query, args.steps, args.lr, each_step=side == "plain")

            spent.append(timed(work, device)[clock])
        print(f"episode {episode}: " + ", ".join(f"{side} {spent[-1]:.2f} s" for side, spent in times.items()), flush=True)
        if "plain" in ends and "full" in ends:
            moved = (ends["plain"] - task.theta).norm()
            print(f"  theta differs by {float((ends['full'] - ends['plain']).norm() / moved):.1e} of the distance that it moved")
    rows = [(side, statistics.median(spent)) for side, spent in times.items()]
    first = rows[0][1]
    print(f"{'side':8} {'s per episode':>13} {'of ' + rows[0][0]:>10}")
    for side, seconds in rows:
        print(f"{side:8} {seconds:13.2f} {seconds / first:10.3f}")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([("side", "seconds", "ratio"), *((s, t, t / first) for s, t in rows)])
    for tuning in (
        (Full(FullConfig.model_validate(options)), LoraAdaptation(LoraAdaptConfig.model_validate(options))) if args.groups else ()
    ):
        works = {count: grouped(tuning, task, support, count) for count in [1, *map(int, args.groups.split(","))]}
        best = dict.fromkeys(works, float("inf"))
        for repeat in range(4):
            for count, adapt in works.items():
                elapsed = timed(adapt, device)[clock] / count
                best[count] = min(best[count], elapsed) if repeat else best[count]
        for count, seconds in best.items():
            print(f"{tuning.name}, {count} side by side: {seconds:.2f} s per episode ({seconds / best[1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
