"""`smat report`: write tables and figures from results."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Examples: [bold]smat report runs/* --out report --names smat=SMAT[/]\n
[bold]smat report runs/smat-sweep-tau --format html --watch[/] (a page that is updated during a sweep)\n
[bold]smat report runs/tuning-demo --baseline lora --published mlae[/] (rows are tuners, with paired differences from LoRA)
"""


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Run directories, sweeps, or folders that contain them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report; an earlier report in it is replaced.")] = Path("report"),
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Baseline to compare with: a method, run, label or row of a tuning table; repeatable. Default: pretrained.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN=LABEL", help="Label of a run in the tables; repeatable."),
    ] = None,
    digits: Annotated[int, typer.Option(min=0, max=6, help="Decimal places of percentages.")] = 1,
    title: Annotated[str, typer.Option(help="Title of the report, which every caption starts with.")] = "",
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="PAPER", help="Add published numbers: meta_dataset, pmf, ... (PAPER:LABEL for one column; or a FILE.csv)."),
    ] = None,
    delta: Annotated[bool, typer.Option("--delta", help="Add differences from published numbers (same method and adaptation).")] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="FORMAT", help="files (LaTeX, Markdown, CSV, PNG, PDF) or html (one page); repeatable. Default: files."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Update the report whenever the runs change, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between checks of --watch.")] = 30.0,
) -> None:
    """Write tables (LaTeX, CSV, Markdown), figures (PNG, PDF) and an HTML page from the results of runs.

    Reads every eval/*/results.h5, tune.json and segment/fold<k>.json below RUNS. Numbers of different protocols or episode
    counts are never mixed in a table. Each sweep gets a table and a figure of accuracy by sparsity target. The results of smat analyze are
    also drawn. Start with README.md or report.html in the output folder.
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
