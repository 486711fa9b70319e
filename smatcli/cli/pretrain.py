"""`smat pretrain`: pre-train a backbone."""

from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a packaged recipe.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values, e.g. pretrain.epochs=10 run=runs/mine.", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint, if it exists.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same as deterministic=true: bit-identical results on one device; slower.")
    ] = False,
) -> None:
    """Pre-train a backbone on labelled images, for example if no weights can be downloaded.

    Trains a cosine classifier on all classes of the recipe's stores and writes backbone.safetensors and backbone.json to the run directory.
    To use them in a train recipe, set backbone.weights=RUN. On SIGHUP, SIGINT, SIGTERM or
    SIGUSR1 the step is finished and a checkpoint is saved.
    """
    from smatcli.config import load_recipe

    given = [*(overrides or []), *(["deterministic=true"] if deterministic else [])]
    loaded = load_recipe(recipe, given, kind="pretrain")  # before torch is imported, so that a bad recipe is reported at once
    from smatcli.engine.pretrain.pretraining import pretrain as run
    from smatcli.runs.reporter import auto_reporter

    run(loaded, auto_reporter(), resume)
