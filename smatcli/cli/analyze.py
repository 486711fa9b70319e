"""`smat analyze`: look into trained runs."""

from typing import Annotated

import typer

from smatcli.cli.options import check_checkpoint, comma_list, split_overrides

EPILOG = """
Example: [bold]smat analyze runs/smat --only masks,gradients[/], then [bold]smat report runs/* --out report[/] draws what was found.
"""


def analyze(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="run directories, and recipe values such as eval.seed=1")
    ],
    only: Annotated[
        str | None,
        typer.Option("--only", help="masks,gradients,predictions,flip,features; smat tune: paths,similarity,expert-maps (default: all)"),
    ] = None,
    adapt: Annotated[
        list[str] | None, typer.Option("--adapt", help="adaptation of predictions and features; repeat for several (default: eval.adapt)")
    ] = None,
    datasets: Annotated[str | None, typer.Option("--datasets", help="only these: a,b,c (default: all of data.id and data.ood)")] = None,
    episodes: Annotated[
        int | None,
        typer.Option("--episodes", "-n", min=1, help="episodes a dataset (default: gradients 2, predictions 50, flip 20)"),
    ] = None,
    index: Annotated[int, typer.Option("--index", min=0, help="number of the episode that features shows")] = 0,
    which: Annotated[str, typer.Option("--which", help="checkpoint: best or last")] = "best",
    replace: Annotated[bool, typer.Option("--replace", help="replace analyses that were made with other settings")] = False,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 (default: the recipe's)")] = None,
) -> None:
    """Look into runs: experts' capacity and overlap, gradient alignment, calibration and confusion, flip searches, features of an episode.

    Writes RUN/analysis/*.h5 with tables as CSV beside them; smat report draws them. Episodes are those of smat eval (gradients: of
    meta-training). What is there with the same settings is not repeated.
    """
    from smatcli.errors import UserError

    check_checkpoint(which)
    folders, overrides = split_overrides(runs)
    if not folders:
        raise UserError("give at least one run directory, e.g. `smat analyze runs/smat`")
    kinds, names = comma_list("--only", only, "masks,flip"), comma_list("--datasets", datasets, "birds,cars")

    from smatcli.engine.analyze.analysis import analyze as run_analysis
    from smatcli.runs.reporter import auto_reporter

    reporter = auto_reporter()
    for folder in dict.fromkeys(folders):
        for path in run_analysis(folder, kinds or (), adapt, names, episodes, index, overrides, which, replace, device, reporter):
            typer.echo(path)
