"""Compare the cost of MLAE with that of LoRA of the same rank, and the cost of a merged network with that of a plain one.

    python benchmarks/tune.py [--width 192 --depth 12 --size 224 --patch 16 --rank 8 --batch 64 --steps 10 --threads 2]

Goals: a training step within 5 % of that of LoRA (peft) in time and memory; inference at batch sizes 1, 4 and 16 as fast as the plain
network. All networks have equal weights and alternate in one process; times are medians. On a shared CPU, compare the CPU seconds. Memory
is the largest allocation of a step (CUDA), or the bytes that autograd saves between forward and backward (CPU).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.config.tuning import TunerConfig
from smatcli.device import choose_device, choose_precision
from smatcli.tuning import Tuner, build_tuner

GOAL = 1.05
CLASSES = 100


def network(args: argparse.Namespace) -> VisionTransformer:
    """Return a ViT with random weights, equal in every call."""
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=args.size, patch_size=args.patch, embed_dim=args.width, depth=args.depth, num_heads=max(1, args.width // 64), num_classes=0
    )


def tuner(args: argparse.Namespace, device: torch.device, **settings: object) -> Tuner:
    """Return a tuner of `network` with random values for all trained parameters."""
    model = build_tuner(TypeAdapter(TunerConfig).validate_python(settings), [network(args)], CLASSES)
    with torch.no_grad():
        for params in model.trainable().values():
            for parameter in params:
                parameter.normal_(std=0.02)
    return model.to(device)


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


def held(model: nn.Module, work: Callable[[], object], device: torch.device) -> float:
    """Return the MB of a step: peak above the memory allocated before (CUDA), or saved tensors except parameters (CPU)."""
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        work()
    return sum(seen.values()) / 1e6


def alternating(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Return the median wall-clock and CPU seconds of each call; each round has a different order."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    names = list(works)
    for work in works.values():
        work()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(timed(works[name], device))
    return {name: (statistics.median(w for w, _ in pairs), statistics.median(c for _, c in pairs)) for name, pairs in times.items()}


def main() -> None:
    """Print time and memory of training steps, then the speed of inference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 192, "depth": 12, "size": 224, "patch": 16, "rank": 8, "batch": 64, "steps": 10, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device, args.width)
    print(precision)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    labels = torch.randint(0, CLASSES, (args.batch,), device=device)
    tuners = {
        "lora": tuner(args, device, name="lora", rank=args.rank),
        "lora dropout 0.1": tuner(args, device, name="lora", rank=args.rank, dropout=0.1),
        "mlae p=0": tuner(args, device, name="mlae", rank=args.rank, mask="none"),
        "mlae p=0.5": tuner(args, device, name="mlae", rank=args.rank),
    }
    works: dict[str, Callable[[], object]] = {}
    for name, model in tuners.items():
        precision.apply(model.train())
        optimizer = torch.optim.AdamW([p for params in model.trainable().values() for p in params], lr=1e-5, fused=True)

        def step(model: Tuner = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            with precision.autocast():
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

        works[name] = step
    times = alternating(works, args.steps, device)
    print(f"\ntraining step, batch {args.batch}, rank {args.rank}\n{'':<20}{'ms':>9}{'CPU ms':>9}{'of lora':>9}{'MB':>9}{'of lora':>9}")
    memory = {name: held(tuners[name], work, device) for name, work in works.items()}
    for name, (wall, cpu) in times.items():
        base = times["lora"]
        ratio = cpu / base[1] if device.type == "cpu" else wall / base[0]
        print(f"{name:<20}{1e3 * wall:9.1f}{1e3 * cpu:9.1f}{ratio:9.3f}{memory[name]:9.1f}{memory[name] / memory['lora']:9.3f}")

    plain = network(args).to(device).eval()
    plain.reset_classifier(CLASSES)
    merged = tuners["mlae p=0.5"].merge()
    assert merged is not None
    nets = {"plain": precision.apply(plain.to(device)), "merged": precision.apply(merged), "unmerged": tuners["mlae p=0.5"].eval()}
    print(
        f"\ninference, images/s (in brackets: time of the plain network / time of this one)\n{'batch':<10}"
        + "".join(f"{name:>20}" for name in nets)
    )
    for size in (1, 4, 16):

        def infer(net: nn.Module, size: int = size) -> None:
            with torch.inference_mode(), precision.autocast():
                net(images[:size])

        times = alternating({name: lambda net=net: infer(net) for name, net in nets.items()}, 4 * args.steps, device)  # type: ignore[misc]
        place = 1 if device.type == "cpu" else 0
        cells = [f"{size / t[0]:.1f} ({times['plain'][place] / t[place]:.3f})" for t in times.values()]
        print(f"{size:<10}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
