"""Scenarios that run with one process and with two: training, meta-tests and pre-training, whose results must agree.

`torchrun --nproc-per-node 2 -m tests.distributed.scenarios FOLDER` does it with two; `run_all` in the test's own process with one.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smatcli.config import load_recipe

SGD = "{optimizer: sgd, lr: 0.1, schedule: constant, warmup: 0}"
FOUR = ("train.meta_batch=4", f"train.groups.delta={SGD}", f"train.groups.masks={SGD}", f"train.groups.router={SGD}")
STOP_AT, RESUMED = 2, "stopped"
SHORT = ("train.steps=4", "train.valid_every=2", "train.checkpoint_every=4")

# name -> overrides; two processes need at least two tasks per update
TRAININGS: dict[str, tuple[str, ...]] = {
    "smat": (),
    "counted": ("method.sparsity.measure=counted", "method.sparsity.tau=0.18", "method.sparsity.lr=5.0", "seed=1", *FOUR),
    "four": FOUR,
    "uneven": ("train.meta_batch=3", *FOUR[1:]),
    "pmf": ("method={name: pmf}",),
    "sharded": ("train.shard_optimizer=true", "train.groups.delta={optimizer: adam, lr: 1e-3, clip: 0.5}"),
    "whole": ("train.groups.delta={optimizer: adam, lr: 1e-3, clip: 0.5}",),
    "nan": (),
    RESUMED: ("train.shard_optimizer=true",),
}
PRETRAIN = """
kind: pretrain
run: {root}/pretrain
device: cpu
precision: fp32
backbone:
  name: vit_tiny_patch16_224
  args: {{patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}}
  image_size: 16
  weights: none
data: {{root: {root}, datasets: [a, b], holdout: 0.2}}
pretrain: {{epochs: 2, batch_size: 10, valid_every: 1}}
"""
EVAL = [
    "eval.episodes=5", "eval.adapt=[proto, flip, full]", "adapt.full.steps=2", "adapt.search.episodes=3", "adapt.search.rates=[0.01, 0.1]",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """Outcome of a stopped training."""

    step: int
    code: int


@contextmanager
def broken(episode: int) -> Iterator[None]:
    """Make the loss of one training episode NaN."""
    from smatcli.methods.smat import SmatMethod

    real = SmatMethod.loss

    def loss(self: Any, episode_: Any, generator: Any, injected: Any = None) -> Any:
        found = real(self, episode_, generator, injected)
        return replace(found, total=found.total * float("nan")) if episode_.index == episode else found

    SmatMethod.loss = loss  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        SmatMethod.loss = real  # type: ignore[method-assign]


@contextmanager
def signalled(rank: int, step: int) -> Iterator[None]:
    """Send SIGTERM to one process alone during an update."""
    from smatcli.engine.train.trainer import MetaLearner

    real = MetaLearner.backward

    def backward(self: Any, batch: Any, now: int) -> Any:
        if self.batched.world.rank == rank and now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, now)

    MetaLearner.backward = backward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        MetaLearner.backward = real  # type: ignore[method-assign]


def run_all(root: Path, out: Path, processes: int) -> None:
    """Run every scenario on the stores in `root`, with runs in `out`."""
    from smatcli.engine.evaluate.evaluation import evaluate
    from smatcli.engine.loop import shards
    from smatcli.engine.pretrain.pretraining import pretrain
    from smatcli.engine.train.trainer import train
    from smatcli.runs.reporter import SilentReporter
    from smatcli.runs.signals import Interrupted

    shards.SMALLEST = 64
    for name, overrides in TRAININGS.items():
        loaded = load_recipe(root / "recipe.yaml", [*SHORT, *overrides, f"run={out / name}"])
        if name == "nan":
            with broken(3):
                train(loaded, SilentReporter())
        elif name == RESUMED and processes > 1:
            try:
                with signalled(1, STOP_AT):
                    train(loaded, SilentReporter())
            except Interrupted as error:
                assert error.exit_code == 143
                assert f"step {STOP_AT + 1} of" in str(error)
            else:
                raise AssertionError("it was not stopped")
            train(loaded, SilentReporter(), resume=True)
        else:
            train(loaded, SilentReporter())
    evaluate(out / "smat", overrides=EVAL, reporter=SilentReporter())
    (out / "pretrain.yaml").write_text(PRETRAIN.format(root=root))
    pretrain(load_recipe(out / "pretrain.yaml", [f"run={out / 'pretrain'}"]), SilentReporter())


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["WORLD_SIZE"]))
