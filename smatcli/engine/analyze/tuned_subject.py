"""The subject of an analysis of a tuned run: the tuner, its data and batches of test images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smatcli.config.tune import TuneRecipe
from smatcli.engine.tune.task import TuningTask, View, in_order, network_input
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest
from smatcli.tuning import Tuner

BATCH = 64


@dataclass
class TunedSubject:
    """The tuned run that is analysed; `tasks` maps the datasets to analyse (by default the run's own) to their data."""

    run: Path
    recipe: TuneRecipe
    tuner: Tuner
    tasks: dict[str, TuningTask]
    device: torch.device
    reporter: Reporter
    stop: StopRequest

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings that identify an analysis."""
        facts = {"run": str(self.recipe.run), "seed": self.recipe.seed, "tuner": self.recipe.tuner.model_dump(mode="json")}
        return {**facts, "datasets": {n: t.store.content_hash for n, t in self.tasks.items()}, **more}

    def batches(self, dataset: str) -> Iterator[Tensor]:
        """Yield normalised test images [B, 3, H, W] of a dataset. Raises Interrupted on a signal."""
        task = self.tasks[dataset]
        view = View(task, task.rows["test"], self.device, keep=False)
        self.reporter.start(len(view), f"images of {dataset}", unit="images")
        done = 0
        try:
            for _, raw in view.batches(in_order(len(view), BATCH)):
                yield network_input(raw, self.recipe)
                done += len(raw)
                self.reporter.update(done)
                if self.stop:
                    raise self.stop.interrupted(f"image {done} of {len(view)} of {dataset}")
        finally:
            self.reporter.finish()
