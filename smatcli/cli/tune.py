"""`smat tune`: adapt a pre-trained network to one dataset or to a suite of datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli.options import parse_seeds, split_overrides, with_placement

if TYPE_CHECKING:
    from smatcli.launch.placement import Placement
    from smatcli.launch.suite import Suite

EPILOG = """
Examples: [bold]smat tune recipes/tuning/demo/mlae.yaml data.dataset=pets data.train=200 data.valid=70 --seeds 0,1,2[/]\n
[bold]smat tune recipes/tuning/mlae-vtab.yaml --suite vtab --devices cuda:0,cuda:1[/]\n
[bold]smat tune recipes/tuning/demo --suite flowers102,textures --seeds 0,1,2 --jobs 2[/] (all recipes in the folder)\n
Running the same command again skips finished runs and continues interrupted runs.
"""


@with_placement(
    "local: one process per visible GPU, or --jobs of them; slurm: one job per run.",
    devices_help="Devices to use in parallel: cuda:0,cuda:1.",
    jobs_help="Number of runs at a time. Default: one per device.",
)
def tune(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...", help="Recipe files, names of packaged recipes, or folders of recipes; recipe values."
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run where it stopped; always on for several runs.")] = False,
    suite: Annotated[
        str,
        typer.Option("--suite", metavar="NAME", help="All tasks of vtab or fgvc, or datasets a,b,c, each in its own run directory."),
    ] = "",
    seeds: Annotated[str, typer.Option("--seeds", metavar="A,B,...", help="Tune once per seed; the table shows the mean over seeds.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the runs of a suite or of several seeds. Default: <run>-suite.")
    ] = None,
    *,
    placement: "Placement",
) -> None:
    """Adapt a pre-trained network to a dataset with a tuner: mlae, lora, vpt, gapt, ssf, adapter, bias, linear, full or pmoe.

    Searches the grid of tune.search on the validation images, then trains and tests. Writes tune.json, metrics.jsonl and checkpoints of the
    trained tensors to the run directory; smat report makes the tables. On SIGHUP, SIGINT, SIGTERM or
    SIGUSR1 the step is finished and a checkpoint
    is saved.
    """
    from smatcli.config import load_recipe
    from smatcli.errors import SmatError, UserError

    recipes, overrides = split_words(words)
    if not (suite or seeds) and len(recipes) == 1:
        several = {"--out": out, "--devices": placement.devices, "--jobs": placement.jobs, "--launcher": placement.launcher}
        if given := [name for name, value in several.items() if value]:
            raise UserError(f"{given[0]} has no effect on a single run; add --suite or --seeds")
        loaded = load_recipe(recipes[0], overrides, kind="tune")  # before torch is imported, so that a bad recipe is reported at once
        from smatcli.engine.tune.tuning import tune as run_tuning
        from smatcli.runs.reporter import auto_reporter

        typer.echo(f"{run_tuning(loaded, auto_reporter(), resume).path}/tune.json")
        return

    numbers = parse_seeds(seeds, overrides)
    from smatcli.launch.suite import run_suite
    from smatcli.runs.reporter import auto_reporter

    result = run_suite(recipes, overrides, suite, numbers, out, placement, auto_reporter())
    if placement.launcher == "slurm":
        typer.echo(f"{len(result.submitted)} jobs submitted; when they have finished, the same command without --launcher shows the table")
    if result.rows:
        show(result)
    if result.failed:
        first = next(iter(result.failed))
        raise SmatError(
            f"{len(result.failed)} of {len(result.points)} runs failed: {', '.join(result.failed)} ({first}: {result.failed[first]})"
        )


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Split words into recipes (a folder means all of its recipes) and overrides. Raises UserError if there is no recipe."""
    from smatcli.errors import UserError

    names, overrides = split_overrides(words)
    recipes: list[str] = []
    for name in names:
        path = Path(name)
        inside = sorted(p for p in path.glob("*") if p.suffix in (".yaml", ".yml")) if path.is_dir() else []
        if path.is_dir() and not inside:
            raise UserError(f"{name}: this folder contains no recipe")
        recipes += [str(p) for p in inside] or [name]
    if not recipes:
        raise UserError("give a recipe, e.g. `smat tune recipes/tuning/demo/mlae.yaml`; `smat recipes ls` lists the packaged ones")
    return recipes, overrides


def show(suite: "Suite") -> None:
    """Print the table of a suite in percent: a row per recipe, a column per dataset, then a column per group of datasets."""
    from rich.table import Table

    from smatcli.cli.output import console

    table = Table(title=f"{suite.title}: mean over seeds (%)", title_justify="left")
    table.add_column("recipe")
    table.add_column("seeds", justify="right")
    columns = suite.columns()
    for name in columns:
        table.add_column(name, justify="right")
    for label, seeds, values in suite.lines():
        table.add_row(label, seeds, *("-" if values[name] is None else f"{100 * values[name]:.1f}" for name in columns))  # type: ignore[operator]
    console().print(table)
    typer.echo(f"{suite.table}")
