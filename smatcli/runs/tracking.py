"""Trackers: TensorBoard and Weights & Biases as mirrors of metrics.jsonl, which is always written; both optional, off by default."""

import importlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from smatcli.errors import UserError, nearest

EXTRA = "install it with `pip install 'smatcli[trackers]'`"
WANDB_FILE = "wandb.id"


class Tracker(Protocol):
    """Takes the records that metrics.jsonl takes."""

    def log(self, record: dict[str, Any]) -> None:
        """One record; `step` and `kind` are in it."""
        ...

    def close(self) -> None:
        """Nothing more comes from this process."""
        ...


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record as `kind/name` (`kind/group/name` for nested ones), without step, tasks, texts and what is not finite."""
    found: dict[str, float] = {}

    def take(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                take(f"{prefix}/{name}", value)
            elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
                found[f"{prefix}/{name}"] = float(value)

    take(str(record.get("kind", "run")), {k: v for k, v in record.items() if k not in ("step", "kind", "tasks")})
    return found


class TensorBoard:
    """Event files in RUN/tensorboard; those of steps that a resumed run does again are purged."""

    def __init__(self, run: Path, recipe: dict[str, Any], step: int) -> None:
        writer = _need("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.writer = writer(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            from smatcli.config.yaml_text import dump

            self.writer.add_text("recipe", f"```yaml\n{dump(recipe)}\n```", 0)

    def log(self, record: dict[str, Any]) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One W&B run a run directory, continued by a resumed one (RUN/wandb.id). WANDB_MODE=offline, WANDB_PROJECT and so on are W&B's own."""

    def __init__(self, run: Path, recipe: dict[str, Any], step: int) -> None:
        wandb = _need("wandb", "wandb")
        file = run / WANDB_FILE
        name = file.read_text(encoding="utf-8").strip() if file.exists() else secrets.token_hex(4)
        settings: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "smat"), "name": run.name, "dir": str(run)}
        try:
            self.run = wandb.init(**settings, id=name, resume="allow", config=recipe)
        except Exception as error:  # W&B has many of its own; none is ours to tell apart
            hint = "log in with `wandb login`, set WANDB_MODE=offline, or go on with --resume track=[]"
            raise UserError(f"track: wandb cannot start: {' '.join(str(error).split())[:200]}; {hint}") from None
        file.write_text(name + "\n", encoding="utf-8")
        # Records of one step come one after the other, of different kinds: the step is a number of its own.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, record: dict[str, Any]) -> None:
        self.run.log({**numbers(record), "step": int(record["step"])})

    def close(self) -> None:
        self.run.finish(quiet=True)


TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_trackers(names: Sequence[str]) -> None:
    """UserError for an unknown tracker, or one that is not installed: before anything is made."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"track: there is no tracker {name!r}{nearest(name, list(TRACKERS))} ({', '.join(TRACKERS)})")
        _need({"tensorboard": "torch.utils.tensorboard"}.get(name, name), name)


def open_trackers(names: Sequence[str], run: Path, recipe: dict[str, Any], step: int) -> list[Tracker]:
    """The trackers of a run that stands at `step` (0: a new one)."""
    check_trackers(names)
    return [TRACKERS[name](run, recipe, step) for name in names]


def _need(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"track: {name} is not installed; {EXTRA}, or leave it out") from None
