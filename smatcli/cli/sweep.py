"""`smat sweep`: run a recipe over a grid of values."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli.options import split_overrides, with_placement

if TYPE_CHECKING:
    from smatcli.launch.grid import Axis
    from smatcli.launch.placement import Placement
    from smatcli.launch.state import PointStatus

EPILOG = """
Examples: [bold]smat sweep tau recipes/realmini/smat.yaml --values 0.5,0.7,0.9,0.95[/]\n
[bold]smat sweep recipes/realmini/smat.yaml --grid method.experts=4,8 --grid seed=0,1 train.steps=500[/]\n
[bold]smat sweep tau recipes/realmini/smat.yaml --values 0.5,0.9 --launcher slurm --slurm-partition gpu --slurm-gpus 1[/]\n
Running the same command again skips finished points and continues interrupted points.
[bold]smat sweep FOLDER --status[/] shows the progress.
"""


@with_placement(
    "local: one process per visible GPU, or --jobs of them; slurm: one job per point.",
    devices_help="Devices to use in parallel: cuda:0,cuda:1. Default: the recipe's.",
    jobs_help="Number of points to run at a time. Default: one per device.",
)
def sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AXIS] RECIPE [KEY=VALUE]...", help="Named axis for --values (tau, experts or seed); recipe; recipe values."
        ),
    ],
    values: Annotated[str | None, typer.Option("--values", metavar="V1,V2,...", help="Values of the named axis.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=V1,V2,...", help="Axis of the grid; repeatable, for the product of the axes.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the runs. Default: <run>-sweep-<axes>.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Show which points are done, running and failed; launch nothing.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Launch only the points that failed or were interrupted.")] = False,
    *,
    placement: "Placement",
) -> None:
    """Train and evaluate a recipe at each point of a grid of values, and tabulate the results. Each point has its own run directory.

    With --status or --retry, give the folder of an earlier sweep instead of a recipe and axes.
    """
    from smatcli.errors import SmatError, UserError

    if status and retry:
        raise UserError("--status and --retry cannot be combined; give one of them")
    folder = existing_folder(words, values, grid) if status or retry else None
    if folder is not None and out is not None:
        raise UserError(f"--out: {folder} is already the folder of the sweep; remove --out")
    if folder is not None:
        from smatcli.launch.sweep import read_sweep

        recipe, axes, overrides = read_sweep(folder)
        out = folder
    else:
        recipe, axes, overrides = parse(words, values, grid or [])
    if status:
        show_status(folder or planned_folder(recipe, axes, overrides, out))
        return

    from smatcli.launch.sweep import sweep as run_sweep
    from smatcli.runs.reporter import auto_reporter

    result = run_sweep(recipe, axes, auto_reporter(), overrides, out, placement, retry)
    if placement.launcher == "slurm":
        typer.echo(f"{len(result.submitted)} jobs submitted; `smat sweep {result.folder} --status` shows their progress")
    if result.rows:
        show(result.rows)
        typer.echo(f"{result.table}")
    if result.failed:
        first = next(iter(result.failed))
        raise SmatError(
            f"{len(result.failed)} of {len(result.points)} points failed: {', '.join(result.failed)} ({first}: {result.failed[first]})"
        )


def existing_folder(words: list[str], values: str | None, grid: list[str] | None) -> Path | None:
    """Return the folder of an earlier sweep, if one is given instead of a recipe."""
    from smatcli.errors import UserError

    folder = Path(words[0])
    if not folder.is_dir():
        return None
    if len(words) > 1 or values is not None or grid:
        raise UserError(f"{folder} is a sweep, which has its own recipe, axes and overrides; give only the folder")
    return folder


def planned_folder(recipe: str, axes: "list[Axis]", overrides: list[str], out: Path | None) -> Path:
    """Return the folder in which a sweep will be written."""
    from smatcli.launch.grid import plan_points

    return plan_points(recipe, axes, overrides, out)[0].run.parent


def show_status(folder: Path) -> None:
    """Print a line per point, the end of the log of each failed point, and the number of points per state."""
    from smatcli.cli.output import print_table
    from smatcli.launch.sweep import sweep_status, update_table

    points = sweep_status(folder)
    rows = [(p.name, p.state, p.job or "-", _steps(p), p.attempt or "-") for p in points]
    print_table(("point", "state", "job", "step", "attempt"), rows, left=("point", "state"))
    for point in points:
        if point.state == "failed":
            typer.echo(f"\n{point.name} failed{f' (log: {point.log})' if point.log else ''}:")
            for line in point.lines:
                typer.echo(f"  {line}")
    counts = Counter(point.state for point in points)
    if counts["done"] and (table := update_table(folder)):
        typer.echo(f"{table}")
    again = f"; `smat sweep {folder} --retry` launches the failed points again" if counts["failed"] else ""
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()) + again)


def _steps(point: "PointStatus") -> str:
    return "-" if point.step is None else f"{point.step}/{point.steps}" if point.steps else str(point.step)


def parse(words: list[str], values: str | None, grid: list[str]) -> "tuple[str, list[Axis], list[str]]":
    """Return the recipe, axes and overrides of `tau RECIPE --values ...` or `RECIPE --grid ...`."""
    from smatcli.config import find_recipe
    from smatcli.errors import UserError
    from smatcli.launch.grid import AXES, named_axis, parse_axis, parse_grid

    plain, overrides = split_overrides(words)
    axes = [parse_grid(text) for text in grid]
    if len(plain) == 2:
        key = named_axis(plain.pop(0))
        if values is None:
            raise UserError(f"sweep {words[0]}: give its values, e.g. --values {'0.5,0.7,0.9' if 'tau' in key else '1,2,4'}")
        axes.insert(0, parse_axis(key, values))
    elif values is not None:
        raise UserError(
            f"--values needs a named axis ({', '.join(AXES)}): smat sweep tau RECIPE --values ...; otherwise use --grid key=v1,v2"
        )
    if len(plain) != 1 or (len(words) == 1 and plain[0] in AXES):
        raise UserError("give one recipe: `smat sweep tau RECIPE --values 0.5,0.9` or `smat sweep RECIPE --grid key=v1,v2`")
    find_recipe(plain[0])
    return plain[0], axes, overrides


def show(rows: list[dict[str, str]]) -> None:
    """Print the table of a sweep in percent (mean ± 95 % half-width)."""
    from rich.table import Table

    from smatcli.cli.output import console

    table = Table(title="sweep: accuracy (%)", title_justify="left")
    for name in ("point", "adapt"):
        table.add_column(name)
    for name in ("ID", "OOD", "sparsity", "episodes"):
        table.add_column(name, justify="right")
    for row in rows:
        sparsity = f"{float(row['sparsity']):.3f}" if row["sparsity"] else "-"
        cells = (_percent(row["id_mean"], row["id_half_width"]), _percent(row["ood_mean"], row["ood_half_width"]))
        table.add_row(row["point"], row["adapt"], *cells, sparsity, row["episodes"])
    console().print(table)


def _percent(mean: str, half_width: str) -> str:
    if not mean:
        return "-"
    return f"{100 * float(mean):.1f}" + (f" ± {100 * float(half_width):.1f}" if half_width else "")
