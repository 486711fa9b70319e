"""The five kinds of training over the loop, each as a tiny recipe: `job(folder, name)` for the tests of what they share."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smatcli.config import Loaded, load_recipe
from smatcli.data.stores.store import write_store
from smatcli.engine.llm.learner import LlmLearner
from smatcli.engine.llm.training import train as train_language_model
from smatcli.engine.loop.learner import Learner
from smatcli.engine.pretrain import pretrain
from smatcli.engine.pretrain.pretraining import PretrainLearner
from smatcli.engine.segment import segment
from smatcli.engine.segment.segmenting import SegmentLearner
from smatcli.engine.train import MetaLearner, train
from smatcli.engine.tune import tune
from smatcli.engine.tune.fit import TuneLearner
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from tests.engine.pretrain import world as pretrain_world
from tests.engine.train import world as train_world
from tests.tuning import world as tune_world

SEGMENT = """
kind: segment
run: ROOT/run
device: cpu
threads: 1
precision: fp32
backbone:
  name: vit_tiny_patch16_224
  args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: 16
  weights: none
data: {layout: folders, root: ROOT/set, classes: 2, test: 0.4, valid: 0.4}
tuner: {name: vpt-deep, prompts: 2}
head: {channels: 4}
segment: {epochs: 6, batch_size: 2, valid_every: 2}
eval: {scales: [], pictures: 0}
"""


def _segment(root: Path, *overrides: str) -> Loaded:
    if not (root / "set").exists():
        rng = np.random.default_rng(0)
        for folder in ("images", "masks"):
            (root / "set" / folder).mkdir(parents=True)
        for i in range(6):
            mask = (rng.random((16, 16)) > 0.5).astype(np.uint8)
            Image.fromarray(mask).save(root / "set" / "masks" / f"{i}.png")
            Image.fromarray(np.stack([mask * 200] * 3, -1)).save(root / "set" / "images" / f"{i}.png")
        (root / "recipe.yaml").write_text(SEGMENT.replace("ROOT", str(root)))
    return load_recipe(root / "recipe.yaml", overrides, kind="segment")


LLM = """
kind: llm
run: ROOT/run
device: cpu
threads: 1
precision: fp32
model: {hidden: 16, layers: 1, heads: 2}
data: {train: ROOT/rows.jsonl, valid: 4, context: 32}
method: {name: simoe, experts: 3, router: {scores: gumbel-sigmoid, temperature: [2.0, 0.5]}}
train: {steps: 6, batch: 5, row: 64, valid_every: 2, checkpoint_every: 2}
"""


def _llm(root: Path, *overrides: str) -> Loaded:
    if not (root / "rows.jsonl").exists():
        _write_rows(root, 3)
        (root / "llm.yaml").write_text(LLM.replace("ROOT", str(root)))
    return load_recipe(root / "llm.yaml", overrides, kind="llm")


def _write_rows(root: Path, shift: int) -> None:
    rows = [{"prompt": f"add {shift}: {n}", "answer": str(n + shift)} for n in range(16)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _other_rows(root: Path) -> None:
    _write_rows(root, 4)


def _other_store(name: str, size: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        images = np.zeros((8, size, size, 3), np.uint8)
        splits = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
        write_store(root / f"{name}.h5", name, size, [(f"{name}{i}", split, images) for i, split in enumerate(splits)], replace=True)

    return change


def _other_mask(root: Path) -> None:
    file = root / "set" / "masks" / "3.png"
    Image.fromarray(1 - np.asarray(Image.open(file))).save(file)


@dataclass(frozen=True)
class Kind:
    """A kind of training: how it is loaded, run and changed; `section` of its recipe holds `spike`."""

    name: str
    run: Callable[..., RunDir]
    load: Callable[..., Loaded]
    learner: type[Learner[Any]]
    section: str
    changed: str  # named when `change` has changed the data
    change: Callable[[Path], None]
    overrides: tuple[str, ...] = ()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("train", train, train_world.load, MetaLearner, "train", "the stores b", _other_store("b", 16)),
        Kind(
            "pretrain", pretrain, pretrain_world.load, PretrainLearner, "pretrain", "the stores b", _other_store("b", 24),
            ("pretrain.epochs=3", "pretrain.batch_size=24"),
        ),
        Kind(
            "tune", tune, tune_world.load, TuneLearner, "tune", "the stores a", _other_store("a", 24),
            ("data.fit=train", "tune.epochs=2", "tuner={name: lora, dropout: 0.3}", "tune.augment={flip: 0.5}"),
        ),
        Kind("segment", segment, _segment, SegmentLearner, "segment", "the images or masks in", _other_mask),
        Kind("llm", train_language_model, _llm, LlmLearner, "train", "the rows or the weights of .*rows.jsonl", _other_rows),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A kind in a folder of its own."""

    kind: Kind
    root: Path

    def __call__(self, reporter: Reporter, *overrides: str, run: str = "run", resume: bool = False) -> RunDir:
        """Train with further `overrides`, in the run directory `run`."""
        loaded = self.kind.load(self.root, *self.kind.overrides, *overrides, f"run={self.root / run}")
        return self.kind.run(loaded, reporter, resume=resume)

    @contextmanager
    def before_step(self, act: Callable[[int], None]) -> Iterator[None]:
        """Call `act(step)` before the gradients of each step (from 0) are computed."""
        backward = self.kind.learner.backward

        def wrapped(learner: Any, batch: Any, step: int) -> Any:
            act(step)
            return backward(learner, batch, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.kind.learner, "backward", wrapped)
            yield

    @contextmanager
    def losses(self, change: Callable[[int, float], float]) -> Iterator[None]:
        """Report changed losses to the loop: `change(step, loss)`."""
        backward = self.kind.learner.backward

        def wrapped(learner: Any, batch: Any, step: int) -> Any:
            numbers: Any = backward(learner, batch, step)
            return {**numbers, "loss": change(step, numbers["loss"])}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.kind.learner, "backward", wrapped)
            yield
