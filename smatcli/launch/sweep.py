"""Trains, evaluates and tabulates every point of a grid; what is done is skipped, what was interrupted is continued."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from smatcli.config import load_recipe
from smatcli.config.schema import TrainRecipe
from smatcli.errors import SmatError, UserError
from smatcli.launch.grid import Axis, Point, plan_points
from smatcli.launch.points import AGAIN, Sweep, changes, eval_overrides, fail, slots_of, visible_devices
from smatcli.launch.state import BUSY, PointStatus, job_files, planned_axes, read_plan, statuses, write_plan
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted


def sweep(
    recipe: str | Path,
    axes: Sequence[Axis],
    reporter: Reporter,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    devices: Sequence[str] = (),
    jobs: int | None = None,
    launcher: str | None = None,
    retry: bool = False,
    slurm: Mapping[str, str] | None = None,
) -> Sweep:
    """Run every point of `axes`' product, each in its own run directory below `out` (default `<run>-sweep-<axes>`).

    `launcher` None: in this process where one point runs at a time; "local": always in processes of their own, one a visible GPU; "slurm":
    one job a point (with the options `slurm`), sent and not waited for. `devices` are used side by side, `jobs` points at a time (default:
    one a device). `retry`: only the points that failed or were interrupted. A point that fails is noted in `Sweep.failed` and the others go
    on. UserError, before anything is made, when a point's recipe is not valid; `Interrupted` after SIGINT or SIGTERM.
    """
    if launcher == "local" and not devices and not any(text.split("=")[0].strip() == "device" for text in overrides):
        devices = visible_devices()
    slots = slots_of(devices, jobs)
    if devices and any(text.split("=")[0].strip() == "device" for text in overrides):
        raise UserError("device= and --devices are both given; give one of them")
    result = Sweep(Path(), plan_points(recipe, axes, overrides, out))
    result.folder = result.points[0].run.parent
    if result.folder.exists() and not result.folder.is_dir():
        raise UserError(f"{result.folder} is a file; choose another --out")
    if (result.folder / "run.json").exists():
        raise UserError(f"{result.folder} is a run; a sweep needs a folder of its own, choose another --out")
    reporter.line(f"sweep of {len(result.points)} points in {result.folder}")
    todo = to_do(result, retry, launcher == "slurm", reporter)
    write_plan(result.folder, recipe, axes, overrides, result.points)
    if launcher == "slurm":
        _send(result, todo, slurm or {}, reporter)
    elif launcher == "local" or (len(slots) > 1 and len(result.points) > 1):
        from smatcli.launch.local import run_side_by_side

        run_side_by_side(result, recipe, slots, reporter, todo)
    else:
        _one_by_one(result, recipe, slots[0], reporter, todo)
    result.collect()
    return result


def known_sweep(folder: Path) -> tuple[str, list[Axis], list[str]]:
    """Recipe, axes and overrides that the sweep in `folder` was made with; UserError where there is none."""
    body = read_plan(folder)
    return str(body["recipe"]), planned_axes(body), [str(text) for text in body["overrides"]]


def status(folder: Path) -> list[PointStatus]:
    """How far each point of the sweep in `folder` is, whatever launched it; UserError where there is none."""
    body = read_plan(folder)
    return statuses(folder, [str(name) for name in body["points"]], dict(body.get("steps") or {}))


def gather(folder: Path) -> Path | None:
    """Bring the table of a sweep up to date, whose points other processes work on; None while there is nothing to tabulate."""
    recipe, axes, overrides = known_sweep(folder)
    result = Sweep(folder, plan_points(recipe, axes, overrides, folder))
    result.collect()
    return result.table if result.rows else None


def to_do(result: Sweep, retry: bool, queued: bool, reporter: Reporter) -> list[Point]:
    """The points to launch: the failed ones for a retry; for a queue those that are neither in it nor done nor failed; else all."""
    if not retry and not queued:
        return result.points
    found = {one.name: one.state for one in statuses(result.folder, [p.name for p in result.points])}
    if retry:
        again = [p for p in result.points if found[p.name] in ("failed", "interrupted")]
        if not again:
            reporter.line("no point has failed; there is nothing to retry")
        return again
    chosen = []
    for point in result.points:
        state = found[point.name]
        if state in BUSY:
            reporter.line(f"{point.name}: is {state} already")
        elif state == "failed":
            reporter.line(f"{point.name}: failed before; --retry sends it again")
        elif state != "done" or not _same_recipe(result.folder, point):
            chosen.append(point)
    return chosen


def _same_recipe(folder: Path, point: Point) -> bool:
    try:
        return job_files(folder, point.name).read_spec()[0].recipe == point.loaded.recipe
    except SmatError:
        return False


def _send(result: Sweep, todo: list[Point], options: Mapping[str, str], reporter: Reporter) -> None:
    from smatcli.launch.slurm import submit

    files = [job_files(result.folder, point.name) for point in todo]
    for one, point in zip(files, todo, strict=True):
        one.forget_state()
        one.write_spec(point.loaded, evaluate=True)
    for point, number in zip(todo, submit(files, options, result.folder / ".sweep" / "slurm"), strict=True):
        result.sent[point.name] = number
        reporter.line(f"{point.name}: Slurm job {number}")


def _one_by_one(result: Sweep, recipe: str | Path, device: str | None, reporter: Reporter, todo: list[Point]) -> None:
    for i, point in enumerate(todo, 1):
        reporter.line(f"[{i}/{len(todo)}] {point.name}")
        files = job_files(result.folder, point.name)
        files.forget_state()
        files.note_sent("local", str(os.getpid()), None)
        files.note_state("running")
        try:
            run_point(point, recipe, device, reporter)
            files.note_state("done")
        except Interrupted as error:
            files.note_state("interrupted", str(error))
            raise Interrupted(error.signum, f"sweep stopped at {point.name}; {AGAIN}") from None
        except SmatError as error:
            fail(result, point, str(error), reporter)
        except Exception as error:  # one broken point must not take the others with it
            fail(result, point, f"{type(error).__name__}: {error}", reporter)
        result.collect()


def run_point(point: Point, recipe: str | Path, device: str | None, reporter: Reporter) -> None:
    """Train (or continue) one point in this process and evaluate it with the recipe's adaptations."""
    from smatcli.engine.evaluate.evaluation import evaluate
    from smatcli.engine.train.trainer import train

    loaded = load_recipe(recipe, changes(point, device), kind="train")
    train(loaded, reporter, resume=point.run.exists())
    assert isinstance(loaded.recipe, TrainRecipe)
    evaluate(point.run, overrides=eval_overrides(loaded.recipe), device=device, reporter=reporter)
