"""`smat report`: tables and figures from results."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Examples: [bold]smat report runs/* --out report --names smat=SMAT[/]\n
[bold]smat report runs/smat-sweep-tau --format html --watch[/] (a page that follows a sweep)\n
[bold]smat report runs/tuning-demo --baseline lora --published mlae[/] (rows are tuners, with paired differences from LoRA)
"""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="run directories, sweeps, or folders of them", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the report; an earlier report there is replaced")] = Path("report"),
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="compare the others with this method, run, label or row of a tuning table; may be repeated [default: pretrained]",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN=LABEL", help="heading of a run's columns, or of its row in a tuning table; may be repeated"),
    ] = None,
    digits: Annotated[int, typer.Option(min=0, max=6, help="digits after the point of percentages")] = 1,
    title: Annotated[str, typer.Option(help="title of the report, also put before every caption")] = "",
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="PAPER", help="show its numbers beside ours: meta_dataset, pmf, ... (PAPER:LABEL: one column; or a FILE.csv)"),
    ] = None,
    delta: Annotated[bool, typer.Option("--delta", help="also ours minus published, where method and adaptation are the same")] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="FORMAT", help="files (LaTeX, Markdown, CSV, PNG, PDF) or html (one page); may be repeated [default: files]"
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="make it again whenever the runs change, until Ctrl-C")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="seconds between two looks of --watch")] = 30.0,
) -> None:
    """Make tables (LaTeX, CSV, Markdown), figures (PNG, PDF) and an HTML page from the results of runs.

    Reads every eval/*/summary.csv and results.h5, tune.json and segment/summary.csv below RUNS. Numbers of different protocols or episode
    counts never share a table; the points of a sweep get a table and a figure (sparsity target against accuracy) of their own. What smat
    analyze found is drawn too.
    Start at README.md or report.html in the folder.
    """
    from smatcli.errors import UserError
    from smatcli.report import ReportOptions
    from smatcli.report import report as write_report

    labels: dict[str, str] = {}
    for text in names or []:
        run, _, label = text.partition("=")
        if not run or not label.strip():
            raise UserError(f"--names {text!r} is not of the form RUN=LABEL")
        labels[run] = label

    options = ReportOptions(baseline or (), labels, digits, title, published or (), delta, formats or ("files",))

    def write() -> None:
        result = write_report(runs, out, options)
        for line in result.lines:
            typer.echo(line, err=True)
        typer.echo(f"{result.index}: {len(result.files)} file{'' if len(result.files) == 1 else 's'}")

    if not watch:
        write()
        return
    from smatcli.report.watch import watch as keep_watching

    keep_watching(write, runs, every, lambda line: typer.echo(line, err=True))
