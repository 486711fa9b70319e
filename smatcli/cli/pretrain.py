"""`smat pretrain`."""

from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a packaged one", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings, e.g. pretrain.epochs=10 run=runs/mine", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run where it stopped (starts it when there is none)")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="the same as deterministic=true: equal bits twice on one device; slower")
    ] = False,
) -> None:
    """Pre-train a backbone with labels, where no weights can be downloaded.

    Trains a cosine classifier over all classes of the recipe's stores and leaves backbone.safetensors and backbone.json in the run
    directory; a train recipe uses them by backbone.weights=RUN. SIGINT, SIGTERM and SIGUSR1 finish the step and keep a checkpoint.
    """
    from smatcli.config import load_recipe

    loaded = load_recipe(
        recipe, [*(overrides or []), *(["deterministic=true"] if deterministic else [])], kind="pretrain"
    )  # before torch is imported: a bad recipe is reported at once
    from smatcli.engine.pretrain.pretraining import pretrain as run
    from smatcli.runs.reporter import auto_reporter

    run(loaded, auto_reporter(), resume)
