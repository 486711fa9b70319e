"""`smat segment`: tune a backbone for segmentation."""

from typing import Annotated

import typer


def segment(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a packaged recipe.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values, e.g. data.root=Kvasir-SEG segment.folds=5.", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint, if it exists.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same as deterministic=true: bit-identical results on one device; slower.")
    ] = False,
) -> None:
    """Tune vision transformers for segmentation: pmoe, vpt, linear or full, under a SETR-PUP head.

    Reads folders of images and masks, including the published layouts of Kvasir-SEG, ISIC and ADE20K, and trains on a single split or with
    cross-validation. Writes single-scale and multi-scale mIoU, Dice and pixel accuracy to RUN/segment/summary.csv, and draws test images.
    """
    from smatcli.config import load_recipe

    given = [*(overrides or []), *(["deterministic=true"] if deterministic else [])]
    loaded = load_recipe(recipe, given, kind="segment")  # before torch is imported
    from smatcli.engine.segment.segmenting import segment as run
    from smatcli.runs.reporter import auto_reporter

    result = run(loaded, auto_reporter(), resume)
    typer.echo(f"{result.path}/segment/summary.csv")
