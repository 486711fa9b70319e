"""`smat analyze`: analyse trained runs."""

from typing import Annotated

import typer

from smatcli.cli.options import check_checkpoint, comma_list, split_overrides

EPILOG = """
Example: [bold]smat analyze runs/smat --only masks,gradients[/], then [bold]smat report runs/* --out report[/] draws the results.
"""


def analyze(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Run directories, and recipe values such as eval.seed=1.")
    ],
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            help="Analyses to make: masks,gradients,predictions,flip,features; for runs of smat tune: paths,similarity,expert-maps.",
        ),
    ] = None,
    adapt: Annotated[
        list[str] | None, typer.Option("--adapt", help="Adaptation for predictions and features; repeatable. Default: eval.adapt.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option("--datasets", help="Datasets to use: a,b,c. Default: all of data.id and data.ood.")
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option("--episodes", "-n", min=1, help="Episodes per dataset. Default: gradients 2, predictions 50, flip 20."),
    ] = None,
    index: Annotated[int, typer.Option("--index", min=0, help="Index of the episode for features.")] = 0,
    which: Annotated[str, typer.Option("--which", help="Checkpoint: best or last.")] = "best",
    replace: Annotated[bool, typer.Option("--replace", help="Replace analyses that were made with different settings.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:1. Default: the recipe's.")] = None,
) -> None:
    """Analyse runs: capacity and overlap of experts, gradient alignment, calibration, confusion, flip searches, features of an episode.

    Writes RUN/analysis/*.h5 and CSV tables, which smat report draws. The episodes are those of smat eval, and for gradients those of
    meta-training. Analyses that already exist with the same settings are skipped.
    """
    from smatcli.errors import UserError

    check_checkpoint(which)
    folders, overrides = split_overrides(runs)
    if not folders:
        raise UserError("give at least one run directory, e.g. `smat analyze runs/smat`")
    kinds, names = comma_list("--only", only, "masks,flip"), comma_list("--datasets", datasets, "birds,cars")

    from smatcli.engine.analyze import AnalysisOptions
    from smatcli.engine.analyze import analyze as run_analysis
    from smatcli.runs.reporter import auto_reporter

    options = AnalysisOptions(kinds or (), adapt, names, episodes, index, overrides, which, replace, device)
    reporter = auto_reporter()
    for folder in dict.fromkeys(folders):
        for path in run_analysis(folder, options, reporter):
            typer.echo(path)
