"""`smat report`: tables and figures from results."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: [bold]smat report runs/* --out report --names smat=SMAT[/]"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="run directories, sweeps, or folders of them", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the report; an earlier report there is replaced")] = Path("report"),
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="compare the others with this method, run or label; may be repeated [default: pretrained]"),
    ] = None,
    names: Annotated[list[str] | None, typer.Option(metavar="RUN=LABEL", help="heading of a run's columns; may be repeated")] = None,
    digits: Annotated[int, typer.Option(min=0, max=6, help="digits after the point of percentages")] = 1,
    title: Annotated[str, typer.Option(help="title of the report, also put before every caption")] = "",
) -> None:
    """Make tables (LaTeX, CSV, Markdown) and figures (PNG, PDF) from the results of runs.

    Reads every eval/*/summary.csv and results.h5 below RUNS. Numbers of different protocols or episode counts never share a table;
    the points of a sweep get a table and a figure (sparsity target against accuracy) of their own. Start at README.md in the folder.
    """
    from smatcli.errors import UserError
    from smatcli.report import report as make_report

    labels: dict[str, str] = {}
    for text in names or []:
        run, _, label = text.partition("=")
        if not run or not label.strip():
            raise UserError(f"--names {text!r} is not of the form RUN=LABEL")
        labels[run] = label
    made = make_report(runs, out, baseline or (), labels, digits, title)
    for line in made.lines:
        typer.echo(line, err=True)
    typer.echo(f"{made.index}: {len(made.files)} files")
