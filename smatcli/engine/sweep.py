"""Trains, evaluates and tabulates every point of a grid; what is done is skipped, what was interrupted is continued."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smatcli.config import leaves, load_recipe, value_text
from smatcli.config.schema import TrainRecipe
from smatcli.engine.grid import Axis, Point, plan_points
from smatcli.engine.reporter import Reporter
from smatcli.engine.signals import Interrupted
from smatcli.engine.sweeptable import read_rows, write_table
from smatcli.errors import SmatError, UserError

META_TEST = ("data.id", "data.ood", "data.ood_split")
AGAIN = "everything so far is kept; run the same command again to continue"


@dataclass
class Sweep:
    """What a sweep came to: `rows` of the table at `table`, and the error line of every point that failed."""

    folder: Path
    points: list[Point]
    rows: list[dict[str, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        """The CSV file: one row per point, adaptation and protocol."""
        return self.folder / "sweep.csv"

    def collect(self) -> None:
        """Read what the points have measured so far and write the table, if there is anything."""
        self.rows = [row for point in self.points if point.name not in self.failed for row in read_rows(point)]
        if self.rows:
            write_table(self.table, self.rows)


def sweep(
    recipe: str | Path,
    axes: Sequence[Axis],
    reporter: Reporter,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    devices: Sequence[str] = (),
    jobs: int | None = None,
) -> Sweep:
    """Run every point of `axes`' product, each in its own run directory below `out` (default `<run>-sweep-<axes>`).

    `devices` are used side by side, `jobs` points at a time (default: one a device). A point that fails is noted in `Sweep.failed` and
    the others go on. UserError, before anything is made, when a point's recipe is not valid; `Interrupted` after SIGINT or SIGTERM.
    """
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
    if len(slots) > 1 and len(result.points) > 1:
        from smatcli.engine.sweepjobs import run_side_by_side

        run_side_by_side(result, recipe, slots, reporter)
    else:
        _one_by_one(result, recipe, slots[0], reporter)
    result.collect()
    return result


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


def _one_by_one(result: Sweep, recipe: str | Path, device: str | None, reporter: Reporter) -> None:
    for i, point in enumerate(result.points, 1):
        reporter.line(f"[{i}/{len(result.points)}] {point.name}")
        try:
            run_point(point, recipe, device, reporter)
        except Interrupted as error:
            raise Interrupted(error.signum, f"sweep stopped at {point.name}; {AGAIN}") from None
        except SmatError as error:
            fail(result, point, str(error), reporter)
        except Exception as error:  # one broken point must not take the others with it
            fail(result, point, f"{type(error).__name__}: {error}", reporter)
        result.collect()


def fail(result: Sweep, point: Point, line: str, reporter: Reporter) -> None:
    """Note a point's failure and go on."""
    result.failed[point.name] = line
    reporter.line(f"{point.name} failed: {line}")


def run_point(point: Point, recipe: str | Path, device: str | None, reporter: Reporter) -> None:
    """Train (or continue) one point in this process and evaluate it with the recipe's adaptations."""
    from smatcli.engine.evaluate import evaluate
    from smatcli.engine.train import train

    loaded = load_recipe(recipe, changes(point, device), kind="train")
    train(loaded, reporter, resume=point.run.exists())
    assert isinstance(loaded.recipe, TrainRecipe)
    evaluate(point.run, overrides=eval_overrides(loaded.recipe), device=device, reporter=reporter)
