"""`smat tune`: adapt a pre-trained network to one dataset, or to a suite of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli import slurm_options as on_slurm

if TYPE_CHECKING:
    from smatcli.launch.suite import Suite

EPILOG = """
Examples: [bold]smat tune recipes/tuning/demo/mlae.yaml data.dataset=pets data.train=200 data.valid=70 --seeds 0,1,2[/]\n
[bold]smat tune recipes/tuning/mlae-vtab.yaml --suite vtab --devices cuda:0,cuda:1[/]\n
[bold]smat tune recipes/tuning/demo --suite flowers102,textures --seeds 0,1,2 --jobs 2[/] (every recipe of the folder)\n
The same command again skips what is done and continues what was interrupted.
"""


def tune(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...", help="recipe files, names of packaged ones or folders of recipes; recipe values"
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="continue the run where it stopped (suites and seeds always do)")] = False,
    suite: Annotated[
        str,
        typer.Option("--suite", metavar="NAME", help="all tasks of vtab or fgvc, or datasets a,b,c; each in a run directory of its own"),
    ] = "",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="A,B,...", help="once with each of these seeds; the table shows their mean")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="folder of the runs of a suite or of seeds [default: <run>-suite]")] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="devices used side by side: cuda:0,cuda:1")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="runs at a time [default: one a device]")] = None,
    launcher: Annotated[
        str | None,
        typer.Option("--launcher", metavar="local|slurm", help="local: processes, one a visible GPU or --jobs; slurm: a job a run"),
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
    """Adapt a pre-trained network to one dataset: mlae, lora, vpt, gapt, ssf, adapter, bias, linear, full, pmoe.

    Searches tune.search on the validation images, trains, tests, and leaves tune.json, metrics.jsonl and checkpoints of what was trained
    in the run directory; smat report makes the tables. SIGINT, SIGTERM and SIGUSR1 finish the step and keep a checkpoint.
    """
    from smatcli.config import load_recipe
    from smatcli.errors import SmatError, UserError

    given = {"partition": slurm_partition, "time": slurm_time, "gpus": slurm_gpus, "cpus": slurm_cpus, "mem": slurm_mem}
    given |= {"account": slurm_account, "qos": slurm_qos, "constraint": slurm_constraint}
    options = on_slurm.slurm_options(launcher, slurm, **given)
    recipes, overrides = split_words(words)
    if not (suite or seeds) and len(recipes) == 1:
        for name, value in (("--out", out), ("--devices", devices), ("--jobs", jobs), ("--launcher", launcher)):
            if value is not None:
                raise UserError(f"{name} is for several runs; add --suite or --seeds")
        loaded = load_recipe(recipes[0], overrides, kind="tune")  # before torch is imported: a bad recipe is reported at once
        from smatcli.engine.tune.tuning import tune as run_tuning
        from smatcli.runs.reporter import auto_reporter

        typer.echo(f"{run_tuning(loaded, auto_reporter(), resume).path}/tune.json")
        return
    names = [name.strip() for name in devices.split(",")] if devices is not None else []
    if "" in names:
        raise UserError(f"--devices {devices!r}: a name is missing; write cuda:0,cuda:1")

    from smatcli.launch.suite import numbers, run_suite
    from smatcli.runs.reporter import auto_reporter

    found = run_suite(recipes, overrides, suite, numbers(seeds, overrides), out, names, jobs, launcher, options, auto_reporter())
    if launcher == "slurm":
        typer.echo(f"{len(found.sent)} jobs submitted; the same command without --launcher shows what is done when they are")
    if found.rows:
        show(found)
    if found.failed:
        first = next(iter(found.failed))
        raise SmatError(
            f"{len(found.failed)} of {len(found.points)} runs failed: {', '.join(found.failed)} ({first}: {found.failed[first]})"
        )


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Recipes (a folder stands for those in it) and overrides; UserError where no recipe is given."""
    from smatcli.errors import UserError

    recipes: list[str] = []
    for word in words:
        path = Path(word)
        if "=" in word and not path.exists():
            continue
        inside = sorted(p for p in path.glob("*") if p.suffix in (".yaml", ".yml")) if path.is_dir() else []
        if path.is_dir() and not inside:
            raise UserError(f"{word}: there is no recipe in this folder")
        recipes += [str(p) for p in inside] if path.is_dir() else [word]
    if not recipes:
        raise UserError("give a recipe, e.g. `smat tune recipes/tuning/demo/mlae.yaml`; `smat recipes ls` lists the packaged ones")
    return recipes, [word for word in words if "=" in word and not Path(word).exists()]


def show(found: "Suite") -> None:
    """The table of a suite: a row a recipe, a column a dataset (percent), then the groups' means."""
    from rich.table import Table

    from smatcli.cli.output import console

    table = Table(title=f"{found.title}: mean over seeds (%)", title_justify="left")
    table.add_column("recipe")
    table.add_column("seeds", justify="right")
    columns = found.columns()
    for name in columns:
        table.add_column(name, justify="right")
    for label, seeds, values in found.lines():
        table.add_row(label, seeds, *("-" if values[name] is None else f"{100 * values[name]:.1f}" for name in columns))  # type: ignore[operator]
    console().print(table)
    typer.echo(f"{found.table}")
