"""`smat data prepare NAME` for the source of a plugin, with options derived from the settings of the plugin."""

import inspect
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from smatcli import plugins
from smatcli.cli.prepare_kind import jobs_of, kind
from smatcli.data.sources import SOURCES

if TYPE_CHECKING:
    from pydantic import BaseModel

    from smatcli.engine.prepare.preparation import PrepareJob

Paths = Annotated[list[Path], typer.Argument(metavar="PATH", help="Paths of the source data; one store each.")]
FITTING = (str, int, float, bool)


def command(name: str) -> Any:
    """Return the command of the plugin source `name`, or None if it is not installed. Raises UserError for a broken plugin."""
    plugin: plugins.SourcePlugin | None = plugins.find("sources", name, taken=SOURCES)
    if plugin is None:
        return None
    options = _options(plugin.settings) if plugin.settings else []

    def jobs(sources: Paths, **given: Any) -> "list[PrepareJob]":
        return [job for path in sources for job in jobs_of(name, [path], **_checked(plugin.settings, given))]

    parameters = [inspect.Parameter("sources", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Paths), *options]
    jobs.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    jobs.__doc__ = plugin.help or f"Create stores with the plugin {name}."
    own = typer.Typer(add_completion=False)
    kind(name, plugin.size, plugin.fit, into=own)(jobs)
    return typer.main.get_command(own)


def _options(settings: "type[BaseModel]") -> list[inspect.Parameter]:
    """Return an option for each field whose type an option supports; other fields keep their default."""
    options = []
    for name, field in settings.model_fields.items():
        kinds = [part for part in get_args(field.annotation) or (field.annotation,) if part is not type(None)]
        if len(kinds) != 1 or kinds[0] not in FITTING:
            continue
        listed = get_origin(field.annotation) is list
        annotation: Any = GenericAlias(list, kinds[0]) if listed else kinds[0]
        default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        word = name.replace("_", "-")
        option = typer.Option(f"--{word}/--no-{word}" if kinds[0] is bool else f"--{word}", help=field.description)
        shown = Annotated[annotation | None, option] if default is None else Annotated[annotation, option]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=shown))
    return options


def _checked(settings: "type[BaseModel] | None", given: dict[str, Any]) -> dict[str, Any]:
    """Validate the options with the plugin's settings and return them. Raises UserError with the first problem."""
    if settings is None:
        return {}
    from pydantic import ValidationError

    from smatcli.errors import UserError

    try:
        checked = settings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}, got {first['input']!r}") from None
    return {name: getattr(checked, name) for name in type(checked).model_fields}
