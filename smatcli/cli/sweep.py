"""`smat sweep`: one recipe over a grid of values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli import slurm_options as on_slurm

if TYPE_CHECKING:
    from smatcli.launch.grid import Axis
    from smatcli.launch.state import PointStatus

EPILOG = """
Examples: [bold]smat sweep tau recipes/realmini/smat.yaml --values 0.5,0.7,0.9,0.95[/]\n
[bold]smat sweep recipes/realmini/smat.yaml --grid method.experts=4,8 --grid seed=0,1 train.steps=500[/]\n
[bold]smat sweep tau recipes/realmini/smat.yaml --values 0.5,0.9 --launcher slurm --slurm-partition gpu --slurm-gpus 1[/]\n
The same command again skips what is done and continues what was interrupted; [bold]smat sweep FOLDER --status[/] shows how far it is.
"""


def sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[AXIS] RECIPE [KEY=VALUE]...", help="A named axis (tau, experts, seed) if --values is given; the recipe; overrides."
        ),
    ],
    values: Annotated[str | None, typer.Option("--values", metavar="V1,V2,...", help="Values of the named axis.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=V1,V2,...", help="An axis; repeat for several (their product).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the points. Default: <run>-sweep-<axes>.")] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", help="Devices used side by side: cuda:0,cuda:1. Default: as the recipe says.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Points at a time. Default: one a device.")] = None,
    launcher: Annotated[
        str | None,
        typer.Option("--launcher", metavar="local|slurm", help="local: processes, one a visible GPU or --jobs; slurm: a job a point."),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Show what is done, running and failed; launch nothing.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Launch only the points that failed or were interrupted.")] = False,
    slurm_partition: on_slurm.Partition = None,
    slurm_time: on_slurm.Time = None,
    slurm_gpus: on_slurm.Gpus = None,
    slurm_cpus: on_slurm.Cpus = None,
    slurm_mem: on_slurm.Mem = None,
    slurm_account: on_slurm.Account = None,
    slurm_qos: on_slurm.Qos = None,
    slurm_constraint: on_slurm.Constraint = None,
    slurm: on_slurm.Other = None,
) -> None:
    """Train, evaluate and tabulate a recipe over a grid of values, each point in its own run directory.

    With --status or --retry the folder of an earlier sweep stands for recipe and axes.
    """
    from smatcli.errors import SmatError, UserError

    given = {"partition": slurm_partition, "time": slurm_time, "gpus": slurm_gpus, "cpus": slurm_cpus, "mem": slurm_mem}
    given |= {"account": slurm_account, "qos": slurm_qos, "constraint": slurm_constraint}
    options = on_slurm.slurm_options(launcher, slurm, **given)
    if launcher == "slurm" and (devices is not None or jobs is not None):
        raise UserError("--devices and --jobs belong to the local launcher; Slurm gives each job its device (--slurm-gpus)")
    if status and retry:
        raise UserError("--status shows and --retry launches; give one of them")
    folder = known_folder(words, values, grid) if status or retry else None
    if folder is not None and out is not None:
        raise UserError(f"--out: {folder} is the sweep's folder already")
    if folder is not None:
        from smatcli.launch.sweep import known_sweep

        recipe, axes, overrides = known_sweep(folder)
        out = folder
    else:
        recipe, axes, overrides = parse(words, values, grid or [])
    if status:
        show_status(folder or planned_folder(recipe, axes, overrides, out))
        return
    names = [name.strip() for name in devices.split(",")] if devices is not None else []
    if "" in names:
        raise UserError(f"--devices {devices!r}: a name is missing; write cuda:0,cuda:1")

    from smatcli.launch.sweep import sweep as run_sweep
    from smatcli.runs.reporter import auto_reporter

    result = run_sweep(recipe, axes, auto_reporter(), overrides, out, names, jobs, launcher, retry, options)
    if launcher == "slurm":
        typer.echo(f"{len(result.sent)} jobs submitted; how far they are: smat sweep {result.folder} --status")
    if result.rows:
        show(result.rows)
        typer.echo(f"{result.table}")
    if result.failed:
        first = next(iter(result.failed))
        raise SmatError(
            f"{len(result.failed)} of {len(result.points)} points failed: {', '.join(result.failed)} ({first}: {result.failed[first]})"
        )


def known_folder(words: list[str], values: str | None, grid: list[str] | None) -> Path | None:
    """The folder of an earlier sweep where it is given instead of a recipe."""
    from smatcli.errors import UserError

    folder = Path(words[0])
    if not folder.is_dir():
        return None
    if len(words) > 1 or values is not None or grid:
        raise UserError(f"{folder} is a sweep: its recipe, axes and overrides are known; give nothing but the folder")
    return folder


def planned_folder(recipe: str, axes: "list[Axis]", overrides: list[str], out: Path | None) -> Path:
    """The folder that a sweep of these words has."""
    from smatcli.launch.grid import plan_points

    return plan_points(recipe, axes, overrides, out)[0].run.parent


def show_status(folder: Path) -> None:
    """Print one line a point, the last lines of the log of those that failed, and a count."""
    from smatcli.cli.output import print_table
    from smatcli.launch.sweep import status as read_status

    found = read_status(folder)
    rows = [(one.name, one.state, one.job or "-", _steps(one), one.attempt or "-") for one in found]
    print_table(("point", "state", "job", "step", "attempt"), rows, left=("point", "state"))
    for one in found:
        if one.state == "failed":
            typer.echo(f"\n{one.name} failed{f' (log: {one.log})' if one.log else ''}:")
            for line in one.lines:
                typer.echo(f"  {line}")
    counts = {state: sum(one.state == state for one in found) for state in dict.fromkeys(one.state for one in found)}
    if counts.get("done"):
        from smatcli.launch.sweep import gather

        if table := gather(folder):
            typer.echo(f"{table}")
    again = f"; smat sweep {folder} --retry launches the failed ones again" if counts.get("failed") else ""
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()) + again)


def _steps(one: "PointStatus") -> str:
    return "-" if one.step is None else f"{one.step}/{one.steps}" if one.steps else str(one.step)


def parse(words: list[str], values: str | None, grid: list[str]) -> "tuple[str, list[Axis], list[str]]":
    """Recipe, axes and overrides of both forms: `tau RECIPE --values ...` and `RECIPE --grid ...`."""
    from smatcli.config import find_recipe
    from smatcli.errors import UserError
    from smatcli.launch.grid import AXES, named_axis, parse_axis, parse_grid

    plain = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in plain]
    axes = [parse_grid(text) for text in grid]
    if len(plain) == 2:
        key = named_axis(plain.pop(0))
        if values is None:
            raise UserError(f"sweep {words[0]}: give its values, e.g. --values {'0.5,0.7,0.9' if 'tau' in key else '1,2,4'}")
        axes.insert(0, parse_axis(key, values))
    elif values is not None:
        raise UserError(
            f"--values belongs to a named axis ({', '.join(AXES)}): smat sweep tau RECIPE --values ...; otherwise use --grid key=v1,v2"
        )
    if len(plain) != 1 or (len(words) == 1 and plain[0] in AXES):
        raise UserError("give one recipe: `smat sweep tau RECIPE --values 0.5,0.9` or `smat sweep RECIPE --grid key=v1,v2`")
    find_recipe(plain[0])
    return plain[0], axes, overrides


def show(rows: list[dict[str, str]]) -> None:
    """Print the table of a sweep: percent, mean +- 95 % half-width."""
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
