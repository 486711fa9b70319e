"""`smat train`: meta-train a method."""

from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a packaged one (smat recipes ls)", metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="recipe values, e.g. train.steps=100")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run where its last checkpoint stands")] = False,
    seeds: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="train once with each of these seeds, as RUN-seedA, RUN-seedB, ...; smat report joins them"),
    ] = "",
) -> None:
    """Meta-train a method (smat, pmf, pretrained) on episodes.

    Makes the recipe's run directory: recipe.yaml (every value), metrics.jsonl, checkpoints/last and best. Never overwrites a run.
    """
    from smatcli.config import load_recipe

    given = overrides or []
    loaded = [load_recipe(recipe, given, kind="train")]  # before torch is imported: a bad recipe is reported at once
    if seeds:
        numbers = _numbers(seeds, given)
        run = loaded[0].recipe.run
        others = [text for text in given if text.partition("=")[0].strip() != "run"]
        loaded = [load_recipe(recipe, [*others, f"seed={seed}", f"run={run}-seed{seed}"], kind="train") for seed in numbers]
    from smatcli.engine.reporter import auto_reporter
    from smatcli.engine.train import train as run_training

    for one in loaded:
        made = run_training(one, auto_reporter(), resume)
        typer.echo(f"{made.path}: meta-test it with `smat eval {made.path} --adapt proto`")


def _numbers(text: str, overrides: list[str]) -> list[int]:
    """The seeds of `--seeds`; UserError unless they are different whole numbers, and the only ones that are given."""
    from smatcli.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--seeds {text}: give different whole numbers with commas between them, such as 0,1,2")
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise UserError("--seeds and seed=... contradict each other; leave one out")
    return [int(part) for part in parts]
