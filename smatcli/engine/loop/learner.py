"""Interface of a kind of training to the loop (loop.py): its data, its loss and its score."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from smatcli.config.schema import SpikeConfig
from smatcli.engine.loop.guard import Problem
from smatcli.engine.loop.loading import restore
from smatcli.engine.loop.optimizers import Optimizers
from smatcli.errors import UserError
from smatcli.seams import Episode

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """The steps at which the loop validates, logs and saves. The last step always ends with a validation and a checkpoint."""

    steps: int
    valid_every: int
    checkpoint_every: int
    spike: SpikeConfig  # which updates to skip
    keep_every: int | None = None  # checkpoints step-N that are never removed
    log_every: int = 1  # a training record contains means over this many steps
    valid_first: bool = False  # also validate before the first step


@dataclass(frozen=True)
class Score:
    """Result of a validation: `value` decides which weights are best, `record` is logged to metrics.jsonl, `line` (if any) is printed."""

    value: float
    record: dict[str, Any]
    line: str = ""


@dataclass
class TrainingProgress:
    """Progress of a training, as plain data that is part of every checkpoint."""

    step: int = 0
    score: float | None = None  # score of the last validation
    best: float = -1.0
    best_step: int = -1
    sums: dict[str, float] = field(default_factory=dict)  # sums since the last training record
    summed: int = 0  # steps in `sums`

    def add(self, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step to the sums."""
        self.sums = {name: self.sums.get(name, 0.0) + number for name, number in numbers.items()}
        self.summed += 1

    def means(self) -> dict[str, float]:
        """Return the means since the last training record and start new sums."""
        means = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Return the fields of a checkpoint's state."""
        best = {"mean": self.best, "step": self.best_step}
        return {"step": self.step, "score": self.score, "best": best, "sums": self.sums, "summed": self.summed}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "TrainingProgress":
        """Read the result of `state`."""
        best = state["best"]
        return cls(int(state["step"]), state.get("score"), best["mean"], best["step"], dict(state.get("sums", {})), state.get("summed", 0))


class Learner(ABC, Generic[Batch]):
    """A model with its data, loss and score. Subclasses set the attributes, and implement at least the methods without a default.

    All randomness must be derived from the step (see `noise`): then a resumed training gives the same bits as an uninterrupted one. With
    several processes, every method but `export` runs in all of them, and `backward` and `validate` must return the same in all.
    """

    name: str  # shown in progress and error lines, e.g. "pre-training"
    unit: str = "steps"  # unit of the progress display
    per_step: int = 1  # units per step
    model: nn.Module
    optimizers: Optimizers
    schedule: Schedule
    data: dict[str, str]  # name -> content hash: a resumed training must see the same data
    data_kind: str = "the stores"
    best_name: str = "best"  # name of the checkpoint with the best score

    @abstractmethod
    def noise(self, step: int) -> int:
        """Return the seed of all random numbers in `step` (from 0). The loop seeds torch's global generator with it."""

    @abstractmethod
    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield the batches of `step` and all following steps, across epochs."""

    @abstractmethod
    def backward(self, batch: Batch, step: int) -> dict[str, float] | Problem:
        """Compute this process's share of the gradients. Return the numbers to record (with the `loss`), or the reason to skip the step."""

    @abstractmethod
    def validate(self, step: int) -> Score | None:
        """Measure the model (in eval mode) after `step` steps; None without validation data."""

    def episodes(self, batch: Batch, step: int) -> Sequence[Episode]:
        """Return the episodes to name in a problem with `batch`."""
        return ()

    def after_step(self, step: int) -> None:
        """Called after every step, including skipped ones; `step` steps are done."""

    def feasible(self) -> bool:
        """Return whether the current weights may be saved as the best."""
        return True

    def position(self, step: int) -> dict[str, Any]:
        """Return the fields that locate `step` in every record, e.g. its epoch."""
        return {}

    def train_record(self, means: dict[str, float], norms: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """Return the fields of a training record: means over steps, gradient norms and learning rates (by group) of the last step."""
        return means

    def advice(self, problem: Problem | None) -> str:
        """Return advice to the user after NaN parameters, or after too many skipped updates (the last one because of `problem`)."""
        return "lower the learning rates in a new run"

    def shown(self, numbers: dict[str, float], progress: TrainingProgress) -> dict[str, float | int]:
        """Return the numbers to show in the progress display."""
        return {"loss": numbers["loss"]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save."""
        return self.model.state_dict()

    def load(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Load saved tensors. Raises UserError, naming their file `where`, if they do not fit."""
        restore(self.model, tensors, where)

    def state(self) -> dict[str, Any]:
        """Return other plain data to save."""
        return {}

    def start(self) -> None:
        """Called if there is no checkpoint to resume from."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the result of `state`. Raises UserError if the training cannot be resumed from it."""

    def export(self, progress: TrainingProgress) -> None:
        """Write files other than checkpoints; called in the main process whenever `last` is saved."""

    def check_data(self, state: dict[str, Any], run: Path) -> None:
        """Raise UserError if the data have changed since the checkpoint with this `state` was written."""
        if "step" not in state:
            raise UserError(f"the checkpoints of run {run} were written by an older version of smat; choose another run=")
        before = state.get("data", self.data)
        changed = sorted(name for name in before.keys() | self.data.keys() if before.get(name) != self.data.get(name))
        if changed:
            raise UserError(f"{self.data_kind} {', '.join(changed)} changed since run {run} began; choose another run=")
