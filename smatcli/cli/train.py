"""`smat train`: meta-train a method."""

from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli import slurm_options as on_slurm

if TYPE_CHECKING:
    from smatcli.config import Loaded


def train(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a packaged one (smat recipes ls)", metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="recipe values, e.g. train.steps=100")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run where its last checkpoint stands")] = False,
    seeds: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="train once with each of these seeds, as RUN-seedA, RUN-seedB, ...; smat report joins them"),
    ] = "",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="the same as deterministic=true: equal bits twice on one device; slower")
    ] = False,
    debug_episode: Annotated[
        str,
        typer.Option(
            metavar="DATASET:INDEX",
            help="train nothing: the loss of this training episode in parts, from the run's failed or last checkpoint",
        ),
    ] = "",
    profile: Annotated[
        bool, typer.Option("--profile", help="measure updates 2 to 6 by phase, and trace the 7th: RUN/profile/phases.csv and trace.json")
    ] = False,
    memory_report: Annotated[bool, typer.Option("--memory-report", help="train nothing: predict a step's peak memory")] = False,
    launcher: Annotated[
        str | None, typer.Option("--launcher", metavar="local|slurm", help="local (the default): here; slurm: as a job of the cluster")
    ] = None,
    slurm_partition: on_slurm.Partition = None,
    slurm_time: on_slurm.Time = None,
    slurm_gpus: on_slurm.Gpus = None,
    slurm_cpus: on_slurm.Cpus = None,
    slurm_mem: on_slurm.Mem = None,
    slurm_account: on_slurm.Account = None,
    slurm_qos: on_slurm.Qos = None,
    slurm_constraint: on_slurm.Constraint = None,
    slurm: on_slurm.Other = None,
) -> None:
    """Meta-train a method (smat, pmf, pretrained) on episodes.

    Makes the recipe's run directory: recipe.yaml (every value), metrics.jsonl, checkpoints/last and best. Never overwrites a run.
    SIGINT, SIGTERM and SIGUSR1 finish the update, keep a checkpoint and leave with 130, 143 or 138; a second one leaves at once.
    An update whose loss or gradient is not finite is left out and counted; train.spike says when that ends the run (exit 1).
    Several processes (torchrun --nproc-per-node N -m smatcli train ...) share the tasks of each meta-batch.
    """
    from smatcli.config import load_recipe

    options = {"partition": slurm_partition, "time": slurm_time, "gpus": slurm_gpus, "cpus": slurm_cpus, "mem": slurm_mem}
    options |= {"account": slurm_account, "qos": slurm_qos, "constraint": slurm_constraint}
    cluster = on_slurm.slurm_options(launcher, slurm, **options)

    given = [*(overrides or []), *(["deterministic=true"] if deterministic else [])]
    loaded = [load_recipe(recipe, given, kind="train")]  # before torch is imported: a bad recipe is reported at once
    if seeds:
        numbers = _numbers(seeds, given)
        run = loaded[0].recipe.run
        others = [text for text in given if text.partition("=")[0].strip() != "run"]
        loaded = [load_recipe(recipe, [*others, f"seed={seed}", f"run={run}-seed{seed}"], kind="train") for seed in numbers]
    if debug_episode:
        _debug(loaded[0], debug_episode, resume or bool(seeds))
        return
    if memory_report:
        _memory(loaded[0])
        return
    if launcher == "slurm":
        _send(loaded, resume, cluster, profile)
        return
    from smatcli.device import reuse_memory
    from smatcli.engine.train.trainer import train as run_training
    from smatcli.runs.reporter import auto_reporter

    reuse_memory()

    for one in loaded:
        made = run_training(one, auto_reporter(), resume, profile)
        typer.echo(f"{made.path}: meta-test it with `smat eval {made.path} --adapt proto`")


def _send(loaded: "list[Loaded]", resume: bool, options: dict[str, str], profile: bool) -> None:
    """Hand the trainings to Slurm."""
    from smatcli.errors import UserError
    from smatcli.launch.trainings import send

    if profile:
        raise UserError("--profile measures a training here; leave --launcher slurm out")
    for one in send(loaded, resume, options):
        typer.echo(f"{one.run}: Slurm job {one.job}, log {one.log}; `smat runs ls {one.run.parent}` shows how far it is")


def _memory(loaded: "Loaded") -> None:
    """Print what `--memory-report` asks for."""
    from smatcli.config.schema import TrainRecipe
    from smatcli.device import threads
    from smatcli.engine.train.memory import predict_memory

    assert isinstance(loaded.recipe, TrainRecipe)
    with threads(loaded.recipe.threads):
        for line in predict_memory(loaded.recipe).lines():
            typer.echo(line)


def _debug(loaded: "Loaded", wanted: str, others: bool) -> None:
    """Print what `--debug-episode` asks for; UserError for one that is no DATASET:INDEX."""
    from smatcli.errors import UserError

    dataset, _, index = wanted.rpartition(":")
    if not dataset or not index.isdecimal():
        raise UserError(f"--debug-episode {wanted}: give DATASET:INDEX, such as birds:120, as the error line of the run names it")
    if others:
        raise UserError("--debug-episode trains nothing; leave --resume and --seeds out")
    from smatcli.engine.train.debug_episode import debug_episode
    from smatcli.runs.reporter import auto_reporter

    found = debug_episode(loaded, dataset, int(index), auto_reporter())
    support = found.episode.support
    images = f"{support.ways} ways, {len(support.labels)} support and {len(found.episode.query_labels)} query images"
    typer.echo(f"{found.episode}: {images}; weights of {found.checkpoint} (step {found.step})")
    lines = {"loss": found.total} | {f"loss_{name}": value for name, value in found.terms.items()} | found.logs
    for name, value in (lines | {f"norm_{name}": value for name, value in found.norms.items()}).items():
        typer.echo(f"{name:<24} {value!r}")
    typer.echo(f"{'not finite':<24} {', '.join(found.broken) or 'nothing'}")


def _numbers(text: str, overrides: list[str]) -> list[int]:
    """The seeds of `--seeds`; UserError unless they are different whole numbers, and the only ones that are given."""
    from smatcli.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--seeds {text}: give different whole numbers with commas between them, such as 0,1,2")
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise UserError("--seeds and seed=... contradict each other; leave one out")
    return [int(part) for part in parts]
