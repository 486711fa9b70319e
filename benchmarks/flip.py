"""Does the flip search cost more than the forward passes it must do? Goal: at most 1.3 times.

    python benchmarks/flip.py [--width 128 --depth 6 --experts 8 --density 0.1 --episodes 5 --threads 1]

Both are timed in one process on the same support sets, alternating: the whole search (`Flip.adapt`), and as many bare backbone forwards of
the support set as the search measured states, on a theta that is ready. On a CPU that others use too, look at the ratio of CPU seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer

from smatcli.adaptation.flip import Flip
from smatcli.config.methods import SmatConfig
from smatcli.config.schema import FlipConfig
from smatcli.device import choose_device, choose_precision
from smatcli.methods.smat import SmatMethod
from smatcli.seams import Support, Task

GOAL = 1.3


def make_method(args: argparse.Namespace) -> SmatMethod:
    """An untrained SMAT method whose inference masks have about `density` non-zeros."""
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
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print milliseconds and ratio of each episode, and the median ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "width": 128,
        "depth": 6,
        "size": 64,
        "patch": 8,
        "experts": 8,
        "ways": 5,
        "shots": 5,
        "rounds": 2,
        "episodes": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--density", type=float, default=0.1, help="share of non-zeros of a mask")
    parser.add_argument("--loss", default="support", choices=["support", "leave-one-out"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    method = make_method(args)
    device = method.theta_pre.device
    flip = Flip(FlipConfig.model_validate({"rounds": args.rounds, "loss": args.loss}))
    ratios = []
    with torch.inference_mode():
        for episode in range(-1, args.episodes):  # the first one warms up
            images = torch.randn(args.ways * args.shots, 3, args.size, args.size, device=device)
            support = Support(images, torch.arange(args.ways, device=device).repeat_interleave(args.shots), args.ways)
            task = method.task(support)
            found: dict[str, int] = {}

            def search(task: Task = task, support: Support = support, found: dict[str, int] = found) -> None:
                found.update(passes=flip.adapt(task, support).info["passes"])

            def forwards(task: Task = task, support: Support = support, found: dict[str, int] = found) -> None:
                for _ in range(found["passes"]):
                    task.embed(support.images, task.theta)

            whole, alone = timed(search, device), timed(forwards, device)
            if episode >= 0:
                ratios.append((whole[0] / alone[0], whole[1] / alone[1]))
                times = f"search {1e3 * whole[0]:.1f} ms, its {found['passes']} forwards alone {1e3 * alone[0]:.1f} ms"
                print(f"episode {episode}: {times}, ratio {ratios[-1][0]:.3f} (CPU seconds {ratios[-1][1]:.3f})")
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median ratio {wall:.3f} (CPU seconds {cpu:.3f}), goal {GOAL}: {'met' if wall <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
