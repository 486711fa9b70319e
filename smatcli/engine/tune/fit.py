"""Training of a tuner on a task: batches (from memory if the images fit), cross-entropy, validation scores."""

import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.config.schema import AugmentConfig
from smatcli.config.tune import TuneRecipe, groups_of
from smatcli.data.counted import counted_key
from smatcli.device import Precision
from smatcli.engine.loop.guard import Problem, nonfinite
from smatcli.engine.loop.learner import Learner, Schedule, Score, TrainingProgress
from smatcli.engine.loop.optimizers import Optimizers, build_optimizers
from smatcli.engine.tune.task import GIB, TuningTask, View, in_order, network_input, scores, shuffled
from smatcli.engine.tune.weights import frozen_digest, load_trained, trained
from smatcli.errors import UserError
from smatcli.tuning import Tuner

LOG_EVERY = 50  # steps per training record
PROBE = 4  # images whose frozen features are computed to predict the size of all
Batch = tuple[Tensor, Tensor]  # positions [B], and raw images uint8 [B, H, W, 3] or their frozen features


class TuneLearner(Learner[Batch]):
    """Learner of a tuner on a task. Without augmentation, the frozen first layers run only once if their output fits in tune.memory."""

    name = "tuning"

    def __init__(self, recipe: TuneRecipe, task: TuningTask, tuner: Tuner, device: torch.device, precision: Precision) -> None:
        self.recipe, self.task, self.device, self.precision = recipe, task, device, precision
        self.model = self.tuner = tuner.to(device)
        precision.apply(tuner)
        self.data = {task.store.name: task.store.content_hash}
        rows = task.fitted(recipe)
        keep = len(rows) * task.store.image_size**2 * 3 <= recipe.tune.memory * GIB
        self.train = View(task, rows, device, keep)
        checked = task.rows["valid"] if recipe.data.fit == "train" else rows[:0]
        self.valid = View(task, checked, device, keep) if len(checked) else None
        self.per_epoch = len(shuffled(len(rows), recipe.tune.batch_size, 0, 0))
        steps, every = max(1, round(recipe.tune.epochs * self.per_epoch)), recipe.tune.valid_every * self.per_epoch
        self.schedule = Schedule(steps, every, every, recipe.tune.spike, log_every=LOG_EVERY)
        self.optimizers = make_optimizers(recipe, tuner, steps)
        self.frozen = frozen_digest(tuner)
        self.seconds = 0.0  # seconds of training, without the start
        self._resumed_at = (0.0, 0.0)  # clock and seconds at the last resume
        self._features: dict[int, Tensor] = {}

    def noise(self, step: int) -> int:
        """Return the seed of augmentation, expert masks and dropout."""
        return counted_key("tune", self.recipe.seed, step) % 2**63

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield shuffled batches, epoch by epoch."""
        features = self._frozen_features(self.train)
        self._resumed_at = (time.monotonic(), self.seconds)
        while True:
            epoch, start = divmod(step, self.per_epoch)
            chunks = shuffled(len(self.train), self.recipe.tune.batch_size, self.recipe.seed, epoch)[start:]
            yield from self.train.batches(chunks) if features is None else self._chunks(features, chunks)
            step = (epoch + 1) * self.per_epoch

    def backward(self, batch: Batch, step: int) -> dict[str, float] | Problem:
        """Compute the cross-entropy and the accuracy of a batch."""
        chosen, given = batch
        labels = self.train.labels[chosen]
        ready = id(self.train) in self._features
        inputs = given if ready else network_input(given, self.recipe, torch.Generator().manual_seed(self.noise(step)))
        with self.precision.autocast():
            logits = self.tuner.from_prefix(inputs) if ready else self.tuner(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.tune.label_smoothing)
        value, accuracy = torch.stack([loss.detach(), (logits.argmax(1) == labels).float().mean()]).tolist()
        if bad := nonfinite(value):
            return Problem(bad)
        loss.backward()
        return {"loss": value, "accuracy": accuracy}

    def validate(self, step: int) -> Score | None:
        """Compute tune.metric on the validation images; None if these are used for training."""
        if self.valid is None:
            return None
        numbers = scores(self.logits(self.tuner, self.valid, cached=True), self.valid.labels.cpu().numpy())
        value = numbers[self.recipe.tune.metric]
        return Score(value, {"mean": value, **{key.replace("-", "_"): number for key, number in numbers.items()}})

    @torch.no_grad()
    def logits(self, net: nn.Module, view: View, cached: bool = False, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the logits [n, C] of `net` for a view's images; `progress` is called with the number of images done."""
        net.eval()
        features, chunks = self._frozen_features(view) if cached else None, in_order(len(view))
        outputs = []
        for chosen, given in view.batches(chunks) if features is None else self._chunks(features, chunks):
            with self.precision.autocast():
                out = net(network_input(given, self.recipe)) if features is None else self.tuner.from_prefix(given)
            outputs.append(out.float().cpu())
            if progress is not None:
                progress(int(chosen[-1]) + 1)
        return torch.cat(outputs).numpy()

    @torch.no_grad()
    def _frozen_features(self, view: View) -> Tensor | None:
        """Return the output of the frozen first layers for all images; None with augmentation, without frozen layers, or if too large."""
        if self.recipe.tune.augment != AugmentConfig() or not len(view):
            return None
        if id(view) in self._features:
            return self._features[id(view)]
        self.tuner.eval()
        parts: list[Tensor] = []
        for _, raw in view.batches([np.arange(min(PROBE, len(view))), *in_order(len(view))]):
            with self.precision.autocast():
                features = self.tuner.frozen_prefix(network_input(raw, self.recipe))
            if features is None or (not parts and features[0].nbytes * len(view) > self.recipe.tune.memory * GIB):
                return None
            parts.append(features)
        self._features[id(view)] = torch.cat(parts[1:])
        return self._features[id(view)]

    def _chunks(self, features: Tensor, chunks: list[np.ndarray]) -> Iterator[Batch]:
        for chunk in chunks:
            chosen = torch.from_numpy(chunk).to(self.device)
            yield chosen, features[chosen]

    def position(self, step: int) -> dict[str, Any]:
        """Return the number of epochs done."""
        return {"epoch": step / self.per_epoch}

    def train_record(self, means: dict[str, float], norms: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """Return the means over steps, and the highest learning rate of the groups."""
        return {**means, "lr": max(rates.values())}

    def shown(self, numbers: dict[str, float], progress: TrainingProgress) -> dict[str, float | int]:
        """Return the epoch, the loss and the last validation score."""
        valid = {} if progress.score is None else {"valid": progress.score}
        return {"epoch": (progress.step - 1) // self.per_epoch + 1, "loss": numbers["loss"], **valid}

    def advice(self, problem: Problem | None) -> str:
        """Name the settings that make training more stable."""
        return "lower tune.lr or set tune.clip in a new run"

    def after_step(self, step: int) -> None:
        """Update the seconds of training."""
        began, before = self._resumed_at
        self.seconds = before + time.monotonic() - began

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors; frozen weights are not saved."""
        return trained(self.tuner)

    def load(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Load the trained tensors."""
        load_trained(self.tuner, tensors, where)

    def state(self) -> dict[str, Any]:
        """Return the digest of the frozen weights and the seconds of training."""
        return {"frozen": self.frozen, "seconds": self.seconds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the seconds of training. Raises UserError if the frozen weights have changed."""
        if state["frozen"] != self.frozen:
            raise UserError(f"backbone.weights: changed since run {self.recipe.run} began; choose another run=")
        self.seconds = float(state["seconds"])


def make_optimizers(recipe: TuneRecipe, tuner: Tuner, steps: int) -> Optimizers:
    """Build the optimizers of the groups `tuner` and `head`; scalars, biases and norms get no weight decay."""
    no_decay = [p for p in tuner.parameters() if p.ndim <= 1]
    groups = {name: params for name, params in tuner.trainable().items() if params}
    configs = {name: config for name, config in groups_of(recipe).items() if name in groups}
    return build_optimizers(groups, configs, steps, no_decay=no_decay, where="tune")
