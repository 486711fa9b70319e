"""Trackers: TensorBoard and Weights & Biases as optional mirrors of metrics.jsonl, which is always written."""

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
    """Receiver of the records that are written to metrics.jsonl."""

    def log(self, record: dict[str, Any]) -> None:
        """Log a record with `step` and `kind`."""
        ...

    def close(self) -> None:
        """Close the tracker; this process logs nothing more."""
        ...


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record as `kind/name` (nested: `kind/group/name`), without step and tasks."""
    flat: dict[str, float] = {}

    def take(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                take(f"{prefix}/{name}", value)
            elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
                flat[f"{prefix}/{name}"] = float(value)

    take(str(record.get("kind", "run")), {k: v for k, v in record.items() if k not in ("step", "kind", "tasks")})
    return flat


class TensorBoard:
    """Tracker that writes event files to RUN/tensorboard. Events of steps that a resumed run repeats are purged."""

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
    """Tracker with one W&B run per run directory (RUN/wandb.id), continued on resume.

    W&B itself reads WANDB_MODE, WANDB_PROJECT and so on.
    """

    def __init__(self, run: Path, recipe: dict[str, Any], step: int) -> None:
        wandb = _need("wandb", "wandb")
        file = run / WANDB_FILE
        name = file.read_text(encoding="utf-8").strip() if file.exists() else secrets.token_hex(4)
        settings: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "smat"), "name": run.name, "dir": str(run)}
        try:
            self.run = wandb.init(**settings, id=name, resume="allow", config=recipe)
        except Exception as error:  # W&B raises many types of errors
            hint = "log in with `wandb login`, set WANDB_MODE=offline, or continue with --resume track=[]"
            raise UserError(f"track: wandb cannot start: {' '.join(str(error).split())[:200]}; {hint}") from None
        file.write_text(name + "\n", encoding="utf-8")
        # A step has several records, of different kinds, so it is logged as a metric.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, record: dict[str, Any]) -> None:
        self.run.log({**numbers(record), "step": int(record["step"])})

    def close(self) -> None:
        self.run.finish(quiet=True)


TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is unknown or not installed, before anything is created."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"track: there is no tracker {name!r}{nearest(name, list(TRACKERS))} ({', '.join(TRACKERS)})")
        _need({"tensorboard": "torch.utils.tensorboard"}.get(name, name), name)


def open_trackers(names: Sequence[str], run: Path, recipe: dict[str, Any], step: int) -> list[Tracker]:
    """Open the trackers of a run that starts or continues at `step` (0: a new run)."""
    check_trackers(names)
    return [TRACKERS[name](run, recipe, step) for name in names]


def _need(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"track: {name} is not installed; {EXTRA}, or remove it") from None
