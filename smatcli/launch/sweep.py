"""Sweeps: train and evaluate every point of a grid, and tabulate the results.

Finished points are skipped, and interrupted points are continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.errors import SmatError, UserError
from smatcli.launch.batch import Batch
from smatcli.launch.dispatch import launch
from smatcli.launch.grid import Axis, plan_points
from smatcli.launch.placement import Placement
from smatcli.launch.points import Point
from smatcli.launch.state import BUSY, PointStatus, job_files, planned_axes, read_plan, statuses, write_plan
from smatcli.launch.table import read_rows
from smatcli.runs.reporter import Reporter
from smatcli.safe.links import refuse_outside_links


@dataclass
class Sweep(Batch):
    """The points of a grid. The table has a row per point, adaptation and protocol."""

    @property
    def table(self) -> Path:
        return self.folder / "sweep.csv"

    def read_results(self) -> list[dict[str, str]]:
        return [row for point in self.points if point.name not in self.failed for row in read_rows(point)]


def sweep(
    recipe: str | Path,
    axes: Sequence[Axis],
    reporter: Reporter,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    placement: Placement | None = None,
    retry: bool = False,
) -> Sweep:
    """Run every point of the product of `axes`, each in its own run directory below `out` (default `<run>-sweep-<axes>`).

    With `retry`, only points that failed or were interrupted are run. A failed point is recorded in `Sweep.failed` and does not stop the
    others. Raises UserError for an invalid recipe, before anything is written, and `Interrupted` after SIGINT or SIGTERM.
    """
    placement = placement or Placement()
    slots = placement.slots(overrides)
    points = plan_points(recipe, axes, overrides, out)
    result = Sweep(points[0].run.parent, points)
    if result.folder.exists() and not result.folder.is_dir():
        raise UserError(f"{result.folder} is a file; choose another --out")
    if (result.folder / "run.json").exists():
        raise UserError(f"{result.folder} is a run directory, and a sweep needs a separate folder; choose another --out")
    reporter.line(f"sweep of {len(points)} points in {result.folder}")
    todo = points_to_launch(result, reporter, retry=retry, queued=placement.launcher == "slurm")
    refuse_outside_links(result.folder)
    write_plan(result.folder, recipe, axes, overrides, points)
    launch(result, todo, placement, slots, reporter)
    return result


def read_sweep(folder: Path) -> tuple[str, list[Axis], list[str]]:
    """Return the recipe, axes and overrides of the sweep in `folder`. Raises UserError if it is not the folder of a sweep."""
    body = read_plan(folder)
    return str(body["recipe"]), planned_axes(body), [str(text) for text in body["overrides"]]


def sweep_status(folder: Path) -> list[PointStatus]:
    """Return the progress of each point of the sweep in `folder`. Raises UserError if it is not the folder of a sweep."""
    body = read_plan(folder)
    return statuses(folder, [str(name) for name in body["points"]], dict(body.get("steps") or {}))


def update_table(folder: Path) -> Path | None:
    """Update the table of a sweep from the results that other processes wrote. Returns its path, or None without results."""
    recipe, axes, overrides = read_sweep(folder)
    result = Sweep(folder, plan_points(recipe, axes, overrides, folder))
    result.collect()
    return result.table if result.rows else None


def points_to_launch(result: Sweep, reporter: Reporter, *, retry: bool, queued: bool) -> list[Point]:
    """Return the points to launch.

    By default all points; with `retry`, those that failed or were interrupted; with `queued`, those that are not queued, done or failed.
    """
    if not retry and not queued:
        return result.points
    states = {status.name: status.state for status in statuses(result.folder, [p.name for p in result.points])}
    if retry:
        failed = [p for p in result.points if states[p.name] in ("failed", "interrupted")]
        if not failed:
            reporter.line("no point has failed; there is nothing to retry")
        return failed
    chosen = []
    for point in result.points:
        state = states[point.name]
        if state in BUSY:
            reporter.line(f"{point.name}: already {state}")
        elif state == "failed":
            reporter.line(f"{point.name}: failed before; --retry submits it again")
        elif state != "done" or not _same_recipe(result.folder, point):
            chosen.append(point)
    return chosen


def _same_recipe(folder: Path, point: Point) -> bool:
    try:
        return job_files(folder, point.name).read_spec()[0].recipe == point.loaded.recipe
    except SmatError:
        return False
