"""`smat sweep`: one recipe over a grid of values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from smatcli.engine.grid import Axis

EPILOG = """
Examples: [bold]smat sweep tau recipes/realmini/smat.yaml --values 0.5,0.7,0.9,0.95[/]\n
[bold]smat sweep recipes/realmini/smat.yaml --grid method.experts=4,8 --grid seed=0,1 train.steps=500[/]\n
The same command again skips what is done and continues what was interrupted.
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
) -> None:
    """Train, evaluate and tabulate a recipe over a grid of values, each point in its own run directory."""
    from smatcli.errors import SmatError, UserError

    recipe, axes, overrides = parse(words, values, grid or [])
    names = [name.strip() for name in devices.split(",")] if devices is not None else []
    if "" in names:
        raise UserError(f"--devices {devices!r}: a name is missing; write cuda:0,cuda:1")

    from smatcli.engine.reporter import auto_reporter
    from smatcli.engine.sweep import sweep as run_sweep

    result = run_sweep(recipe, axes, auto_reporter(), overrides, out, names, jobs)
    if result.rows:
        show(result.rows)
        typer.echo(f"{result.table}")
    if result.failed:
        first = next(iter(result.failed))
        raise SmatError(
            f"{len(result.failed)} of {len(result.points)} points failed: {', '.join(result.failed)} ({first}: {result.failed[first]})"
        )


def parse(words: list[str], values: str | None, grid: list[str]) -> "tuple[str, list[Axis], list[str]]":
    """Recipe, axes and overrides of both forms: `tau RECIPE --values ...` and `RECIPE --grid ...`."""
    from smatcli.config import find_recipe
    from smatcli.engine.grid import AXES, named_axis, parse_axis, parse_grid
    from smatcli.errors import UserError

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
