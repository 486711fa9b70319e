"""Measure where the time of an evaluation goes, with and without the feature cache: is it bound by the network or by Python?

    python benchmarks/evaluate.py [--episodes 600 --images 2000 --csv FILE]           a random store, an untrained ViT of width 128
    python benchmarks/evaluate.py --run runs/pmf --dataset birds [--adapt proto]     an existing run (evaluates a copy)

Prints the CPU seconds of the main thread by part: network (forward passes), images (normalisation; other threads read them), prototypes
(class means and cosines), writing, the rest. Both evaluations run in one process; `equal` shows whether their accuracies are identical.
"""

import argparse
import csv
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smatcli.adaptation.proto as proto
import smatcli.data.episodes.loader as loader
import smatcli.engine.evaluate.features as features
from smatcli.config import load_recipe
from smatcli.data.stores.store import write_store
from smatcli.device import reuse_memory
from smatcli.engine.evaluate.evaluation import EvalOptions, evaluate
from smatcli.engine.evaluate.folder import EvalFolder
from smatcli.engine.train.trainer import train
from smatcli.methods.base import FlatMethod
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.results import read_records

RECIPE = """
kind: train
run: {folder}/run
threads: 1
backbone: {{name: vit_tiny_patch16_224, args: {{patch_size: 8, embed_dim: 128, depth: 6, num_heads: 4}}, image_size: 64, weights: none}}
data: {{root: {folder}, train: [made], id: [made], ood: []}}
method: {{name: pretrained}}
train: {{steps: 0}}
"""


class Parts:
    """CPU seconds of the main thread by part, excluding the time of inner parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work` with its time added to the part `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            outside, self._inner, begun = self._inner, 0.0, time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                whole = time.thread_time() - begun
                self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner
                self._inner = outside + whole

        return call


def make_run(folder: Path, images: int) -> Path:
    """Write a store of noise with 20 test classes, and a run of the pre-trained method with an untrained network; return the run."""
    rng = np.random.default_rng(0)
    classes = [(f"c{i:02d}", 2, rng.integers(0, 256, (images // 20, 64, 64, 3), dtype=np.uint8)) for i in range(20)]
    others = [(f"{name}{i}", split, classes[0][2][:20]) for split, name in enumerate(("train", "valid")) for i in range(10)]
    write_store(folder / "made.h5", "made", 64, [*others, *classes])
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    train(load_recipe(folder / "recipe.yaml"), SilentReporter())
    return folder / "run"


def main() -> None:
    """Print the time of each part, without and with the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--dataset", default="made")
    parser.add_argument("--adapt", default="proto")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()
    tables, results = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        source = args.run or make_run(Path(temporary), args.images)
        plain: dict[tuple[Any, str], tuple[str, Callable[..., Any]]] = {
            (FlatMethod, "embed"): ("network", FlatMethod.embed),
            (loader, "normalise"): ("images", loader.normalise),  # type: ignore[attr-defined]
            (features, "normalise"): ("images", features.normalise),  # type: ignore[attr-defined]
            (proto, "prototypes"): ("prototypes", proto.prototypes),  # type: ignore[attr-defined]
            (proto, "cosine_logits"): ("prototypes", proto.cosine_logits),  # type: ignore[attr-defined]
            (EvalFolder, "add"): ("writing", EvalFolder.add),
            (EvalFolder, "merge"): ("writing", EvalFolder.merge),
        }
        for cache in ("warm-up", "false", "true"):
            target = Path(temporary) / f"copy-{cache}"
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("eval"))
            parts = Parts()
            for (owner, name), (part, work) in plain.items():
                setattr(owner, name, parts.timed(part, work))
            begun, whole = time.thread_time(), time.process_time()
            count = 3 if cache == "warm-up" else args.episodes
            given = [f"eval.cache_features={'false' if cache == 'warm-up' else cache}"]
            (folder,) = evaluate(target, [args.adapt], [args.dataset], count, given, EvalOptions(device=args.device))
            parts.seconds["the rest"] = time.thread_time() - begun - sum(parts.seconds.values())
            parts.seconds["all threads"] = time.process_time() - whole
            if cache != "warm-up":
                tables[cache] = parts.seconds
                results[cache] = read_records(folder / "results.h5")[args.dataset]["accuracy"]
    names = list(dict.fromkeys(name for seconds in tables.values() for name in seconds))
    print(f"{args.episodes} episodes, {args.adapt}, CPU seconds\n{'part':14} {'no cache':>10} {'cache':>10}")
    for name in names:
        print(f"{name:14} " + " ".join(f"{tables[cache].get(name, 0.0):10.2f}" for cache in ("false", "true")))
    ratio = tables["true"]["all threads"] / tables["false"]["all threads"]
    print(f"cache / no cache: {ratio:.3f}; equal: {np.array_equal(results['true'], results['false'])}")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            csv.writer(file).writerows([("part", "no cache", "cache"), *((n, *(tables[c].get(n, 0.0) for c in tables)) for n in names)])


if __name__ == "__main__":
    main()
