"""`smat train`: meta-train a method."""

from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a packaged one (smat recipes ls)", metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="recipe values, e.g. train.steps=100")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run where its last checkpoint stands")] = False,
) -> None:
    """Meta-train a method (smat, pmf, pretrained) on episodes.

    Makes the recipe's run directory: recipe.yaml (every value), metrics.jsonl, checkpoints/last and best. Never overwrites a run.
    """
    from smatcli.config import load_recipe

    loaded = load_recipe(recipe, overrides or [], kind="train")  # before torch is imported: a bad recipe is reported at once
    from smatcli.engine.reporter import auto_reporter
    from smatcli.engine.train import train as run_training

    run = run_training(loaded, auto_reporter(), resume)
    typer.echo(f"{run.path}: meta-test it with `smat eval {run.path} --adapt proto`")
