"""What does a fine-tuned episode cost: PMF's loop as its paper describes it, against `full`, `lora` and `joint`?

    python benchmarks/finetune.py [--width 128 --depth 6 --size 64 --ways 5 --shots 5 --queries 10 --steps 50 --episodes 3 --csv FILE]
    python benchmarks/finetune.py --sides full,whole   whole: `full` by the whole network, the last block's unused tokens too
    python benchmarks/finetune.py --groups 2,4         also: `full` and `lora` of several episodes side by side, against one by one

The plain side (Hu et al., CVPR 2022; written from its description): for every episode a copy of the network, Adam tensor by tensor, and
in each of the steps one forward pass of the support set for the prototypes, one of its augmented copies for the loss, and one of the
query set, whose accuracy it shows; the query is embedded again at the end. The augmentation noise is the same, so that both end at the
same parameters up to rounding (`theta differs`; in bf16 Adam makes much of little: compare with --precision fp32). All sides alternate
episode by episode in one process; CPU seconds (GPU: wall), the median. `-query`: the plain side without the query in each step, which is
what `full` computes too.
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
    """PMF's fine-tuning of one episode; theta [P] at its end."""
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

    def logits(features: Tensor, centres: Tensor) -> Tensor:
        return task.scale * F.normalize(features, dim=1) @ F.normalize(centres, dim=1).T

    for _ in range(steps):
        optimizer.zero_grad()
        known = embed(images)
        centres = torch.stack([known[labels == c].mean(0) for c in range(support.ways)])
        loss = F.cross_entropy(logits(embed(diff_augment(images, generator)), centres), labels)
        loss.backward()
        optimizer.step()
        if each_step:
            with torch.no_grad():
                logits(embed(query), centres).argmax(1)
    with torch.no_grad():
        known = embed(images)
        centres = torch.stack([known[labels == c].mean(0) for c in range(support.ways)])
        logits(embed(query), centres).argmax(1)
    return method.space.flatten(net)


class Whole(Full):
    """`full` by the network as it is."""

    name = "whole"

    def embedding(self, task: Task, several: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """All of the task's own embedding."""
        return task.embed


def grouped(ours: Full | LoraAdaptation, task: Task, support: Support, count: int) -> Callable[[], object]:
    """`count` episodes of their own parameters, side by side (1: one as it is)."""
    tasks = [replace(task, theta=task.theta.clone(), seed=i) for i in range(count)]
    supports = [replace(support, images=support.images.clone()) for _ in tasks]
    assert ours.rate is not None
    rates = [ours.rate] * count
    return lambda: adapt_many(ours, tasks, supports, rates)


def main() -> None:
    """Prints seconds of every episode and side, and the medians as ratios to the plain loop."""
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
        for side, found in times.items():

            def work(side: str = side, task: Task = task, support: Support = support, query: Tensor = query, ends: dict = ends) -> None:
                if side in ours:
                    adapted = ours[side].adapt(task, support)
                    adapted.predict(query)
                    ends[side] = adapted.theta
                else:
                    ends[side] = plain(method, task, support, query, args.steps, args.lr, side == "plain")

            found.append(timed(work, device)[clock])
        print(f"episode {episode}: " + ", ".join(f"{side} {found[-1]:.2f} s" for side, found in times.items()), flush=True)
        if "plain" in ends and "full" in ends:
            moved = (ends["plain"] - task.theta).norm()
            print(f"  theta differs by {float((ends['full'] - ends['plain']).norm() / moved):.1e} of how far it moved")
    rows = [(side, statistics.median(found)) for side, found in times.items()]
    first = rows[0][1]
    print(f"{'side':8} {'s an episode':>13} {'of ' + rows[0][0]:>10}")
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
                spent = timed(adapt, device)[clock] / count
                best[count] = min(best[count], spent) if repeat else best[count]
        for count, seconds in best.items():
            print(f"{tuning.name}, {count} side by side: {seconds:.2f} s an episode ({seconds / best[1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
