"""Points of a sweep: their results, devices and overrides."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smatcli.config import leaves, value_text
from smatcli.config.schema import TrainRecipe
from smatcli.errors import UserError
from smatcli.launch.grid import Point
from smatcli.launch.state import job_files
from smatcli.launch.table import read_rows, write_table
from smatcli.runs.reporter import Reporter

META_TEST = ("data.id", "data.ood", "data.ood_split")


AGAIN = "everything so far is kept; run the same command again to continue"


@dataclass
class Sweep:
    """What a sweep came to: `rows` of the table at `table`, and the error line of every point that failed."""

    folder: Path
    points: list[Point]
    rows: list[dict[str, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)  # point -> number of the Slurm job that does it

    @property
    def table(self) -> Path:
        """The CSV file: one row per point, adaptation and protocol."""
        return self.folder / "sweep.csv"

    def collect(self) -> None:
        """Read what the points have measured so far and write the table, if there is anything."""
        self.rows = [row for point in self.points if point.name not in self.failed for row in read_rows(point)]
        if self.rows:
            write_table(self.table, self.rows)


def visible_devices() -> list[str]:
    """Every GPU that this process sees, by name; empty without one."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def slots_of(devices: Sequence[str], jobs: int | None) -> list[str | None]:
    """The device of each of the points that run at a time; None = as the recipe says."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one point must run at a time")
    names: list[str | None] = list(devices) or [None]
    return [names[i % len(names)] for i in range(jobs or len(names))]


def changes(point: Point, device: str | None, side_by_side: int = 1) -> tuple[str, ...]:
    """A point's overrides on a device; CPU threads are shared out when several points run side by side and the recipe sets none."""
    extra = [f"device={device}"] if device else []
    if side_by_side > 1 and point.loaded.recipe.threads is None:
        extra.append(f"threads={max(1, (os.cpu_count() or 1) // side_by_side)}")
    return (*point.overrides, *extra)


def eval_overrides(recipe: TrainRecipe) -> list[str]:
    """The meta-test's settings as overrides: a point trained earlier, with other ones in its own recipe, is evaluated with these."""
    values = leaves(recipe.model_dump(mode="json"))
    return [f"{key}={value_text(value)}" for key, value in values.items() if key.startswith(("eval.", "adapt.")) or key in META_TEST]


def fail(result: Sweep, point: Point, line: str, reporter: Reporter) -> None:
    """Note a point's failure and go on."""
    result.failed[point.name] = line
    job_files(result.folder, point.name).note_state("failed", line)
    reporter.line(f"{point.name} failed: {line}")
