"""`smat train`: meta-train a method."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli.options import parse_seeds, with_placement

if TYPE_CHECKING:
    from smatcli.config import Loaded
    from smatcli.launch.placement import Placement


@with_placement("local (default): in this process; slurm: as a Slurm job.")
def train(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a packaged recipe (smat recipes ls).", metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe values, e.g. train.steps=100.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
    seeds: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Train once per seed, as RUN-seedA, RUN-seedB, ...; smat report combines them."),
    ] = "",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same as deterministic=true: bit-identical results on one device; slower.")
    ] = False,
    debug_episode: Annotated[
        str,
        typer.Option(
            metavar="DATASET:INDEX",
            help="Only print the loss terms of this training episode, computed with the failed or last checkpoint of the run.",
        ),
    ] = "",
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Time the phases of updates 2 to 6 and trace the 7th; writes RUN/profile/phases.csv and trace.json."
        ),
    ] = False,
    memory_report: Annotated[bool, typer.Option("--memory-report", help="Only predict the peak memory of an update.")] = False,
    *,
    placement: "Placement",
) -> None:
    """Meta-train a method (smat, pmf, pretrained) on episodes.

    Creates the recipe's run directory with recipe.yaml (every value), metrics.jsonl, checkpoints/last and best. Never overwrites a run.

    On SIGHUP, SIGINT, SIGTERM or SIGUSR1 the update is finished, a checkpoint is saved, and the exit code is 129, 130, 143 or 138; a second
    signal stops at once. An update whose loss or gradient is not finite is skipped and counted; the run fails (exit code 1) after
    train.spike.in_a_row skipped updates in a row.

    Several processes (torchrun --nproc-per-node N --no-python smat train ...) share the tasks of each meta-batch.
    """
    from smatcli.config import load_recipe

    given = [*(overrides or []), *(["deterministic=true"] if deterministic else [])]
    loaded = [load_recipe(recipe, given, kind="train")]  # before torch is imported, so that a bad recipe is reported at once
    if seeds:
        numbers = parse_seeds(seeds, given)
        run = loaded[0].recipe.run
        others = [text for text in given if text.partition("=")[0].strip() != "run"]
        loaded = [load_recipe(recipe, [*others, f"seed={seed}", f"run={run}-seed{seed}"], kind="train") for seed in numbers]
    if debug_episode:
        _debug(loaded[0], debug_episode, several=resume or bool(seeds))
        return
    if memory_report:
        _memory(loaded[0])
        return
    if placement.launcher == "slurm":
        _submit(loaded, placement.slurm, resume=resume, profile=profile)
        return
    from smatcli.device import reuse_memory
    from smatcli.engine.train.trainer import train as run_training
    from smatcli.runs.reporter import auto_reporter

    reuse_memory()

    for each in loaded:
        result = run_training(each, auto_reporter(), resume, profile)
        typer.echo(f"{result.path}: meta-test it with `smat eval {result.path} --adapt proto`")


def _submit(loaded: "list[Loaded]", options: Mapping[str, str], *, resume: bool, profile: bool) -> None:
    """Submit the trainings to Slurm."""
    from smatcli.errors import UserError
    from smatcli.launch.trainings import submit_trainings

    if profile:
        raise UserError("--profile works only for local training; remove --launcher slurm")
    for training in submit_trainings(loaded, options, resume=resume):
        run = training.run
        typer.echo(f"{run}: Slurm job {training.job}, log {training.log}; `smat runs ls {run.parent}` shows its progress")


def _memory(loaded: "Loaded") -> None:
    """Print the report of `--memory-report`."""
    from smatcli.config.schema import TrainRecipe
    from smatcli.device import threads
    from smatcli.engine.train.memory import predict_memory

    assert isinstance(loaded.recipe, TrainRecipe)
    with threads(loaded.recipe.threads):
        for line in predict_memory(loaded.recipe).lines():
            typer.echo(line)


def _debug(loaded: "Loaded", wanted: str, *, several: bool) -> None:
    """Print the report of `--debug-episode`. Raises UserError unless `wanted` is DATASET:INDEX."""
    from smatcli.errors import UserError

    dataset, _, index = wanted.rpartition(":")
    if not dataset or not index.isdecimal():
        raise UserError(f"--debug-episode {wanted}: give DATASET:INDEX, such as birds:120, as in the error line of the run")
    if several:
        raise UserError("--debug-episode does not train; remove --resume and --seeds")
    from smatcli.engine.train.debug_episode import debug_episode
    from smatcli.runs.reporter import auto_reporter

    result = debug_episode(loaded, dataset, int(index), auto_reporter())
    support = result.episode.support
    images = f"{support.ways} ways, {len(support.labels)} support and {len(result.episode.query_labels)} query images"
    typer.echo(f"{result.episode}: {images}; weights of {result.checkpoint} (step {result.step})")
    lines = {"loss": result.total} | {f"loss_{name}": value for name, value in result.terms.items()} | result.logs
    for name, value in (lines | {f"norm_{name}": value for name, value in result.norms.items()}).items():
        typer.echo(f"{name:<24} {value!r}")
    typer.echo(f"{'not finite':<24} {', '.join(result.broken) or 'nothing'}")
