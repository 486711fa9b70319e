"""Soak test: train, stop, resume and evaluate for hours in one process, and check that memory, file handles and threads do not grow.

    python benchmarks/soak.py --minutes 120 --episodes 10000     (the full test: 2 h and 10,000 episodes)
    python benchmarks/soak.py --minutes 3 --episodes 1000        (a short test)

Uses tiny stores and a ViT of width 64 in a temporary folder. Resident memory after a tenth of the work, when caches are full, is compared
with that at the end. Prints a Markdown table and exits with 1 if memory grew by 1 % or more, or if the number of open files or threads
grew. Episodes of variable shape are measured but do not affect the exit code, because PyTorch's CPU library caches code for up to 1,024
shapes.
"""

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.config import load_recipe
from smatcli.data.stores.store import write_store
from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.engine.train.trainer import train
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted

RECIPE = """
kind: train
run: {root}/run
device: auto
threads: 1
backbone: {{name: vit_tiny_patch16_224, args: {{patch_size: 8, embed_dim: 64, depth: 3, num_heads: 2}}, image_size: 32, weights: none}}
data: {{root: {root}, train: [a, b], id: [a], ood: [b]}}
episode: {{kind: fixed, ways: 5, shots: 2, queries: 3}}
method: {{name: smat, experts: 4}}
train: {{steps: 40, valid_every: 20, valid_episodes: 4, checkpoint_every: 10, keep_every: 20, augment: {{flip: 0.5, jitter: 0.2}}}}
eval: {{adapt: [proto, flip], episode: {{kind: variable, max_ways: 8, max_support: 60}}}}
"""
FIXED = "eval.episode={kind: fixed, ways: 5, shots: 2, queries: 5}"


@dataclass
class Gauge:
    """Samples of (work done, resident bytes, open files, threads)."""

    samples: list[tuple[int, int, int, int]] = field(default_factory=list)

    def read(self, done: int) -> None:
        """Add a sample."""
        gc.collect()
        status = Path("/proc/self/status").read_text()
        value = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmRSS", "Threads"))}
        self.samples.append((done, int(value["VmRSS"]) * 1024, len(os.listdir("/proc/self/fd")), int(value["Threads"])))

    def row(self, what: str, seconds: float) -> tuple[str, bool]:
        """Return a row of the table, and whether nothing grew."""
        total = self.samples[-1][0]
        first = next(s for s in self.samples if s[0] >= total / 10)
        last = self.samples[-1]
        growth = 100 * (last[1] / first[1] - 1)
        files, threads = last[2] - first[2], last[3] - first[3]
        text = (
            f"| {what} | {total:,} | {seconds / 60:.1f} | {first[1] / 1e6:.1f} | {last[1] / 1e6:.1f} | {growth:+.2f} % "
            f"| {max(s[1] for s in self.samples) / 1e6:.1f} | {first[2]} -> {last[2]} | {first[3]} -> {last[3]} |"
        )
        return text, growth < 1 and files <= 0 and threads <= 0


class Stopping(SilentReporter):
    """Reporter that stops the process by SIGTERM at step `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def update(self, done: int, **numbers: Any) -> None:
        if done == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


class Measuring(SilentReporter):
    """Reporter that reads the gauge every `every` episodes."""

    def __init__(self, gauge: Gauge, every: int) -> None:
        super().__init__()
        self.gauge, self.every = gauge, every

    def line(self, text: str) -> None: ...

    def update(self, done: int, **numbers: Any) -> None:
        if done % self.every == 0:
            self.gauge.read(done)


def write_stores(root: Path) -> None:
    """Write two stores of noise and the recipe."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        classes = [
            (f"{name}{i}", 0 if i < 12 else 1 if i < 20 else 2, rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)) for i in range(30)
        ]
        write_store(root / f"{name}.h5", name, 32, classes)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))


def soak_training(root: Path, minutes: float, gauge: Gauge) -> None:
    """Repeatedly train, stop by SIGTERM twice, resume, finish and delete the run."""
    until, loops = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < until or loops < 10:
        for at in (13, 27):
            try:
                train(load_recipe(root / "recipe.yaml"), Stopping(at), resume=True)
            except Interrupted:
                continue
            raise SystemExit("the run did not stop")
        train(load_recipe(root / "recipe.yaml"), SilentReporter(), resume=True)
        shutil.rmtree(root / "run")
        loops += 1
        gauge.read(loops)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, resume and evaluate for hours, and check that memory does not grow.")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--episodes", type=int, default=10_000)
    given = parser.parse_args()
    well = True
    print("| work | number | minutes | MB after a tenth | MB at the end | growth | peak MB | open files | threads |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_stores(root)
        begun, gauge = time.monotonic(), Gauge()
        soak_training(root, given.minutes, gauge)
        text, good = gauge.row("train + 2 resumes, loops", time.monotonic() - begun)
        print(text, flush=True)
        well &= good
        train(load_recipe(root / "recipe.yaml"), SilentReporter())
        for what, count, overrides in (("fixed", given.episodes, [FIXED]), ("variable", given.episodes // 4, [])):
            begun, gauge = time.monotonic(), Gauge()
            reporter = Measuring(gauge, max(1, count // 50))
            evaluate(root / "run", datasets=["b"], episodes=count, overrides=overrides, reporter=reporter)
            text, good = gauge.row(f"meta-test, {what} shapes, episodes", time.monotonic() - begun)
            print(text, flush=True)
            well &= good or what == "variable"
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
