"""Evaluation of an episode: its task is computed once for all adaptations, and each adaptation adds a record.

Where it is faster, several episodes of the same shape are fine-tuned together: an episode waits until there are enough of them. Episodes
that still wait when a meta-test stops are evaluated again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from smatcli.adaptation.finetune import FineTune
from smatcli.adaptation.grouped import Grouping, adapt_many, alike
from smatcli.adaptation.proto import Proto
from smatcli.config.schema import TrainRecipe
from smatcli.data.counted import counted_key
from smatcli.data.stores.store import Store
from smatcli.engine.evaluate.episodes import EvalEpisodes
from smatcli.engine.evaluate.features import Features
from smatcli.engine.evaluate.meters import Meter, Trajectory, combined
from smatcli.errors import SmatError
from smatcli.seams import Adaptation, Classifier, Episode, Method, Task

FROM_EXHAUSTIVE = ("loss_binary", "flip_loss", "flip_gap", "flip_evaluations")
KEPT = ("passes", "loss_start", "loss", "evaluations", "accepted", "rate", "steps", *FROM_EXHAUSTIVE)
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class EvalSetup:
    """The objects that all parts of an evaluation share; `stores` maps datasets to their stores."""

    recipe: TrainRecipe
    episodes: EvalEpisodes
    stores: Mapping[str, Store]
    method: Method
    device: torch.device
    features: Features
    grouping: Grouping


@dataclass
class PendingEpisode:
    """An open episode: its task and the cost of the task, its records, and the fine-tuning that waits for `size` episodes of one shape."""

    episode: Episode
    task: Task
    seconds: float
    costs: dict[str, float]
    rows: Rows = field(default_factory=dict)
    waiting: dict[str, FineTune[Any]] = field(default_factory=dict)
    size: int = 1

    def joins(self, other: "PendingEpisode") -> bool:
        """Return whether both episodes can be fine-tuned together."""
        pairs = (self.task, self.episode.support), (other.task, other.episode.support)
        return self.waiting == other.waiting and self.size == other.size and alike(*pairs)


class EpisodeWork:
    """Computes the records of episodes. `spread`: seconds added to every episode of the current dataset for the tables that they share."""

    def __init__(self, setup: EvalSetup) -> None:
        self.method, self.settings, self.device = setup.method, setup.recipe.adapt, setup.device
        self.features, self.episodes, self.grouping = setup.features, setup.episodes, setup.grouping
        self.meter, self.spread = Meter(setup.device), 0.0

    def open(self, episode: Episode, adaptations: Mapping[str, Adaptation]) -> PendingEpisode:
        """Compute the episode's task, and the records of all adaptations that do not wait for other episodes."""
        self.meter.start()
        begun = time.perf_counter()
        noise = counted_key("adaptation", episode.seed, episode.dataset, episode.index) % 2**63
        self.features.bind(episode, joined=any(type(each) is Proto for each in adaptations.values()))
        task = self.features.of(replace(self.method.task(episode.support), seed=noise))
        self._synchronise()
        pending = PendingEpisode(episode, task, self.spread + time.perf_counter() - begun, self.meter.read())
        for name, adaptation in adaptations.items():
            size = 1 if self._records_trajectory(name) else self.grouping.size(adaptation, task, episode.support)
            if size > 1:
                assert isinstance(adaptation, FineTune)
                pending.size = min(size, pending.size) if pending.waiting else size
                pending.waiting[name] = adaptation
            else:
                pending.rows[name] = self._adapted(pending, name, adaptation)
        return pending

    def close(self, group: Sequence[PendingEpisode]) -> list[Rows]:
        """Fine-tune a group of episodes together, and return their records by adaptation."""
        for name, adaptation in group[0].waiting.items():
            self.meter.start()
            begun = time.perf_counter()
            rate = adaptation.rate
            assert rate is not None
            tasks, supports = [pending.task for pending in group], [pending.episode.support for pending in group]
            try:
                classifiers = adapt_many(adaptation, tasks, supports, [rate] * len(group))
            except SmatError as error:
                raise type(error)(f"{group[0].episode} to {group[-1].episode}: {error}") from None
            self._synchronise()
            each, spent = (time.perf_counter() - begun) / len(group), self.meter.read()
            if "energy" in spent:
                spent["energy"] /= len(group)
            for pending, classifier in zip(group, classifiers, strict=True):
                pending.rows[name] = self._recorded(pending, name, classifier, time.perf_counter() - each, spent)
        return [pending.rows for pending in group]

    def _records_trajectory(self, name: str) -> bool:
        return bool(getattr(getattr(self.settings, name, None), "trajectory", False))

    def _adapted(self, pending: PendingEpisode, name: str, adaptation: Adaptation) -> dict[str, Any]:
        self.meter.start()
        begun, path = time.perf_counter(), Trajectory(pending.episode)
        watched = {"watch": path} if self._records_trajectory(name) else {}
        try:
            classifier = adaptation.adapt(pending.task, pending.episode.support, **watched)
        except SmatError as error:
            raise type(error)(f"{pending.episode}: {error}") from None
        row = self._recorded(pending, name, classifier, begun + path.seconds)
        if watched:
            row["trajectory"] = path.padded(getattr(self.settings, name).steps)
        return row

    def _recorded(
        self, pending: PendingEpisode, name: str, classifier: Classifier, begun: float, spent: dict[str, float] | None = None
    ) -> dict[str, Any]:
        """Return the record of a classifier whose adaptation started at `begun`; `spent` are its costs, if they are already measured."""
        episode = pending.episode
        try:
            logits = classifier.predict(episode.query_images)
        except SmatError as error:
            raise type(error)(f"{episode}: {error}") from None
        if not bool(torch.isfinite(logits).all()):
            raise SmatError(
                f"{episode}: the logits of {name} are not finite; check the weights and the precision (earlier episodes are kept)"
            )
        seconds = pending.seconds + time.perf_counter() - begun
        costs = combined(pending.costs, self.meter.read() if spent is None else spent)
        digest = self.episodes.digest(episode.dataset, episode.index)
        return {**record(episode, pending.task, logits, classifier.info, seconds), **costs, "plan": digest}

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def record(episode: Episode, task: Task, logits: torch.Tensor, info: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the record of an episode with one adaptation (see `smatcli.runs.results.Records`)."""
    row: dict[str, Any] = {
        "index": episode.index,
        "accuracy": float((logits.argmax(1) == episode.query_labels).double().mean()),
        "ways": episode.support.ways,
        "support": len(episode.support.labels),
        "query": len(episode.query_labels),
        "seconds": seconds,
        **{key: info[key] for key in KEPT if key in info},
    }
    if task.alpha is not None:
        alpha = task.alpha.float().cpu().numpy()
        scores, bits = info.get("scores"), info.get("bits")
        row["alpha"] = alpha
        row["scores"] = alpha if scores is None else scores.float().cpu().numpy()
        row["chosen"] = np.full(len(alpha), -1, np.int8) if bits is None else np.asarray(bits, np.int8)
    return row
