"""Options shared by several verbs: the launcher and its Slurm options, comma-separated lists, seeds, overrides."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from smatcli.launch.placement import Placement

LAUNCHERS = ("local", "slurm")
CHECKPOINTS = ("best", "last")


def _slurm(flag: str, metavar: str, text: str) -> Any:
    return Annotated[str | None, typer.Option(flag, metavar=metavar, help=text, rich_help_panel="Slurm", show_default=False)]


_SLURM: dict[str, Any] = {
    "partition": _slurm("--slurm-partition", "NAME", "Partition (queue)."),
    "time": _slurm("--slurm-time", "TIME", "Time limit: minutes, HH:MM:SS or D-HH:MM:SS. Default: 1-00:00:00."),
    "gpus": _slurm("--slurm-gpus", "N", "GPUs per node."),
    "cpus": _slurm("--slurm-cpus", "N", "CPUs per task."),
    "mem": _slurm("--slurm-mem", "SIZE", "Memory per node, such as 32G."),
    "account": _slurm("--slurm-account", "NAME", "Account to charge."),
    "qos": _slurm("--slurm-qos", "NAME", "Quality of service."),
    "constraint": _slurm("--slurm-constraint", "FEATURES", "Required features of the node."),
}
_OTHER_HELP = "Any other option of sbatch, such as gres=gpu:1 or nodes=2; setup=COMMAND runs first on the node."
_OTHER = Annotated[
    list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help=_OTHER_HELP, rich_help_panel="Slurm", show_default=False)
]


def with_placement(launcher_help: str, devices_help: str = "", jobs_help: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --launcher and --slurm-* to a verb, and --devices and --jobs if their help is given; the verb receives a `placement`."""
    options: dict[str, Any] = {}
    if devices_help:
        options["devices"] = Annotated[str | None, typer.Option("--devices", help=devices_help)]
        options["jobs"] = Annotated[int | None, typer.Option("--jobs", min=1, help=jobs_help)]
    options["launcher"] = Annotated[str | None, typer.Option("--launcher", metavar="local|slurm", help=launcher_help)]
    options |= {f"slurm_{name}": annotation for name, annotation in _SLURM.items()}
    options["slurm"] = _OTHER

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**given: Any) -> None:
            values = {key: given.pop(key) for key in options}
            verb(**given, placement=_placement(values))

        own = [p for p in inspect.signature(verb).parameters.values() if p.name != "placement"]
        added = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for key, a in options.items()]
        command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        return command

    return decorate


def _placement(values: dict[str, Any]) -> "Placement":
    from smatcli.errors import UserError
    from smatcli.launch.placement import Placement

    devices = [name.strip() for name in values["devices"].split(",")] if values.get("devices") is not None else []
    if "" in devices:
        raise UserError(f"--devices {values['devices']!r}: a name is missing; give names such as cuda:0,cuda:1")
    named = {name: values[f"slurm_{name}"] for name in _SLURM}
    return Placement(values["launcher"], devices, values.get("jobs"), slurm_options(values["launcher"], values["slurm"], named))


def slurm_options(launcher: str | None, other: Sequence[str] | None, named: dict[str, str | None]) -> dict[str, str]:
    """Return the Slurm options by name. Raises UserError if an option is malformed, or given without `--launcher slurm`."""
    from smatcli.errors import UserError, nearest

    if launcher is not None and launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: use local or slurm{nearest(launcher, list(LAUNCHERS))}")
    options = {key: value for key, value in named.items() if value is not None}
    for text in other or []:
        key, equals, value = text.partition("=")
        key = key.strip().removeprefix("--")
        if not equals or not key:
            raise UserError(f"--slurm {text!r} is not of the form KEY=VALUE (a flag: KEY=)")
        if key in options:
            raise UserError(f"--slurm {key} is given twice")
        options[key] = value.strip()
    if options and launcher != "slurm":
        raise UserError(f"--slurm-* ({', '.join(options)}) needs --launcher slurm")
    return options


def parse_seeds(text: str, overrides: Sequence[str]) -> list[int]:
    """Return the seeds of `--seeds` (empty if not given). Raises UserError unless they are distinct integers without a seed= override."""
    from smatcli.errors import UserError

    if not text:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--seeds {text}: give different whole numbers separated by commas, such as 0,1,2")
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise UserError("--seeds and seed=... cannot be combined; give one of them")
    return [int(part) for part in parts]


def comma_list(option: str, text: str | None, example: str) -> list[str] | None:
    """Return the words of "a, b", or None if the option is not given. Raises UserError if the list is empty."""
    from smatcli.errors import UserError

    words = None if text is None else [word.strip() for word in text.split(",") if word.strip()]
    if words == []:
        raise UserError(f"{option} is empty; give names such as {option} {example}")
    return words


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into names or existing paths, and overrides (KEY=VALUE)."""
    names = [word for word in words if "=" not in word or Path(word).exists()]
    return names, [word for word in words if word not in names]


def check_checkpoint(which: str) -> None:
    """Raise UserError unless `--which` is best or last."""
    from smatcli.errors import UserError, nearest

    if which not in CHECKPOINTS:
        raise UserError(f"--which {which}: use best or last{nearest(which, list(CHECKPOINTS))}")
