"""Runs to meta-test without training: a store of coloured noise and a method whose features are pooled pixels weighted by theta."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smatcli.config.schema import TrainRecipe
from smatcli.data.stores.store import write_store
from smatcli.methods.base import FullPrecision
from smatcli.runs.directory import RunDir
from smatcli.seams import Support, Task

WIDTH = 3 * 4 * 4
NO_CLOCK = {"seconds", "peak_memory", "energy"}


class FakeMethod(nn.Module):
    """theta [48] weighs 4 x 4 average-pooled pixels; two experts; `before` is called with the number of every task."""

    theta_pre: Tensor
    steps: Tensor

    def __init__(self, experts: bool = True, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("theta_pre", torch.rand(WIDTH, generator=generator) + 0.5)
        self.register_buffer("steps", torch.randn(2, WIDTH, generator=generator))
        self.experts, self.tasks, self.before = experts, 0, lambda number: None
        self.precision = FullPrecision()

    def embed(self, images: Tensor, theta: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) * theta

    def merge(self, scores: Tensor) -> Tensor:
        return self.theta_pre + scores @ self.steps

    def task(self, support: Support) -> Task:
        self.tasks += 1
        self.before(self.tasks)
        if not self.experts:
            return Task(self.theta_pre, self.embed)
        alpha = torch.softmax(support.images.mean((0, 2, 3))[:2], 0)
        return Task(self.merge(alpha), self.embed, 10.0, alpha, self.merge)


def make_store(folder: Path, name: str, seed: int, classes: int = 9, per_class: int = 12) -> None:
    """Classes of noisy colour patterns; the last six are test classes."""
    rng = np.random.default_rng(seed)

    def images() -> np.ndarray:
        pattern = np.kron(rng.uniform(110, 150, (4, 4, 3)), np.ones((4, 4, 1)))
        return np.clip(pattern + rng.normal(0, 60, (per_class, 16, 16, 3)), 0, 255).astype(np.uint8)

    write_store(folder / f"{name}.h5", name, 16, [(f"c{i}", 0 if i < 2 else 1 if i < 3 else 2, images()) for i in range(classes)])


def make_run(folder: Path, method: dict[str, Any] | None = None, name: str = "smat") -> Path:
    """A run directory (no checkpoints) over the stores `near`, `far` and `farther` of `folder`/data."""
    (folder / "data").mkdir(exist_ok=True)
    for seed, store in enumerate(("near", "far", "farther")):
        if not (folder / "data" / f"{store}.h5").exists():
            make_store(folder / "data", store, seed)
    recipe = TrainRecipe.model_validate(
        {
            "kind": "train",
            "run": str(folder / name),
            "backbone": {"image_size": 16},
            "data": {"root": str(folder / "data"), "train": ["near"], "id": ["near"], "ood": ["far", "farther"]},
            "method": method or {"name": "smat", "experts": 2},
            "train": {"steps": 1},
            "eval": {"episodes": 5, "episode": {"ways": 4, "shots": 3, "queries": 6}, "adapt": ["proto", "flip"]},
        }
    )
    return RunDir.create(folder / name, recipe, {}, ["test"]).path


def serve(monkeypatch: pytest.MonkeyPatch, method: nn.Module) -> None:
    """Let `load_method` give `method`."""
    import smatcli.engine.loop.loading

    monkeypatch.setattr(smatcli.engine.loop.loading, "load_method", lambda run, which="best", reporter=None, device=None: (method, None))
