"""The `--launcher` and `--slurm-*` options that verbs share."""

from typing import Annotated

import typer

LAUNCHERS = ("local", "slurm")
PANEL = "Slurm"


def _text(flag: str, metavar: str, text: str) -> object:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=PANEL, show_default=False)


Partition = Annotated[str | None, _text("--slurm-partition", "NAME", "Partition (queue).")]
Time = Annotated[str | None, _text("--slurm-time", "TIME", "Time limit: minutes, HH:MM:SS or D-HH:MM:SS. Default: 1-00:00:00.")]
Gpus = Annotated[str | None, _text("--slurm-gpus", "N", "GPUs a node.")]
Cpus = Annotated[str | None, _text("--slurm-cpus", "N", "CPUs a task.")]
Mem = Annotated[str | None, _text("--slurm-mem", "SIZE", "Memory a node, such as 32G.")]
Account = Annotated[str | None, _text("--slurm-account", "NAME", "Account that pays.")]
Qos = Annotated[str | None, _text("--slurm-qos", "NAME", "Quality of service.")]
Constraint = Annotated[str | None, _text("--slurm-constraint", "FEATURES", "Features that the node must have.")]
Other = Annotated[
    list[str] | None, _text("--slurm", "KEY=VALUE", "Any other option of sbatch, such as gres=gpu:1 or nodes=2; setup=COMMAND runs before.")
]


def slurm_options(launcher: str | None, other: list[str] | None, **named: str | None) -> dict[str, str]:
    """The given Slurm options by name; UserError on one of the wrong form, or given without `--launcher slurm`."""
    from smatcli.errors import UserError, nearest

    if launcher is not None and launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: there is local and slurm{nearest(launcher, list(LAUNCHERS))}")
    found = {key: value for key, value in named.items() if value is not None}
    for text in other or []:
        key, equals, value = text.partition("=")
        key = key.strip().removeprefix("--")
        if not equals or not key:
            raise UserError(f"--slurm {text!r} is not of the form KEY=VALUE (a flag: KEY=)")
        if key in found:
            raise UserError(f"--slurm {key} is given twice")
        found[key] = value.strip()
    if found and launcher != "slurm":
        raise UserError(f"--slurm-* ({', '.join(found)}) is read with --launcher slurm only")
    return found
