"""`smat segment`."""

from typing import Annotated

import typer


def segment(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a packaged one", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings, e.g. data.root=Kvasir-SEG segment.folds=5", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run where it stopped (starts it when there is none)")] = False,
) -> None:
    """Tune vision transformers for segmentation: pmoe, vpt, linear or full, under a SETR-PUP head.

    Reads folders of images and masks (also Kvasir-SEG, ISIC and ADE20K as they are published), trains on one split or by
    cross-validation, and writes mIoU, Dice and pixel accuracy, single and multi-scale, to RUN/segment/summary.csv, with pictures beside it.
    """
    from smatcli.config import load_recipe

    loaded = load_recipe(recipe, overrides or [], kind="segment")  # before torch is imported: a bad recipe is reported at once
    from smatcli.engine.segment.segmenting import segment as run
    from smatcli.runs.reporter import auto_reporter

    made = run(loaded, auto_reporter(), resume)
    typer.echo(f"{made.path}/segment/summary.csv")
