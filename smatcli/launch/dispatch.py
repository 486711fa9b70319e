"""Launch a batch locally or on a Slurm cluster."""

from collections.abc import Mapping, Sequence

from smatcli.launch.batch import Batch
from smatcli.launch.local import run_one_by_one, run_side_by_side
from smatcli.launch.placement import Placement
from smatcli.launch.points import Point
from smatcli.launch.slurm import submit
from smatcli.launch.state import HIDDEN, job_files
from smatcli.runs.reporter import Reporter


def launch(batch: Batch, todo: Sequence[Point], placement: Placement, slots: Sequence[str | None], reporter: Reporter) -> None:
    """Run the points `todo` of a batch and write its table. Failures are recorded in `batch.failed`. Does not wait for Slurm jobs."""
    if placement.launcher == "slurm":
        submit_points(batch, todo, placement.slurm, reporter)
    elif todo and (placement.launcher == "local" or (len(slots) > 1 and len(todo) > 1)):
        run_side_by_side(batch, todo, slots, reporter)
    else:
        run_one_by_one(batch, todo, slots[0], reporter)
    batch.collect()


def submit_points(batch: Batch, todo: Sequence[Point], options: Mapping[str, str], reporter: Reporter) -> None:
    """Submit a Slurm job per point."""
    jobs = [(job_files(batch.folder, point.name), point.loaded) for point in todo]
    evaluated = bool(todo) and todo[0].loaded.recipe.kind == "train"
    for point, number in zip(todo, submit(jobs, options, batch.folder / HIDDEN / "slurm", evaluated=evaluated), strict=True):
        batch.submitted[point.name] = number
        reporter.line(f"{point.name}: Slurm job {number}")
