"""Methods, adaptations, sources, backbones and tables of other packages, found by their entry points (docs/extend.md). Knows no torch.

A plugin is looked for when a recipe, an option or a report names something that this package does not have, and only then imported: a
broken one never stands in the way of anything else.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from smatcli.errors import SmatError, UserError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

OFF = "SMAT_NO_PLUGINS"  # set to 1: as if no plugin were installed
PREFIX = "smatcli."
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BACKBONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_KIND = re.compile(r"[a-z][a-z0-9-]*")

Maker = str | Callable[..., Any]


@dataclass(frozen=True)
class _Plugin:
    """What every kind has: `build`, a callable or "module:name", which is imported when it is needed."""

    build: Maker

    def made(self, *args: Any, **options: Any) -> Any:
        """What `build` makes of the arguments; ImportError or AttributeError where there is no such thing."""
        return _resolved(self.build)(*args, **options)


@dataclass(frozen=True)
class MethodPlugin(_Plugin):
    """A meta-tuning method: `build(settings, backbone)` gives a `smatcli.methods.base.FlatMethod`.

    `settings` is a `smatcli.config.base.Strict` with `name: Literal["its name"]`, the keys of `method:` in a recipe; `label` heads its
    columns in reports.
    """

    settings: "type[BaseModel] | None" = None
    label: str = ""


@dataclass(frozen=True)
class AdaptationPlugin(_Plugin):
    """A meta-test adaptation: `build(settings)` (or `build()` without settings) gives a `smatcli.seams.Adaptation`.

    `settings` is a `Strict` of which every value has a default: the keys of `adapt.NAME:` in a recipe. Where it has an `lr` that is
    null, the rate is searched, and the adaptation has `at(rate)`, which gives the same at another rate.
    """

    settings: "type[BaseModel] | None" = None
    needs_experts: bool = False


@dataclass(frozen=True)
class SourcePlugin(_Plugin):
    """A kind of source data: `build(path, **settings)` gives a `smatcli.data.sources.Source`; `smat data prepare NAME PATH...` reads it.

    The fields of `settings` (a `Strict`; numbers, text, true or false, lists of these) are the command's options. `size` (pixels) and `fit`
    are its defaults.
    """

    help: str = ""
    settings: "type[BaseModel] | None" = None
    size: int = 128
    fit: Literal["crop", "squash"] = "squash"


@dataclass(frozen=True)
class BackbonePlugin(_Plugin):
    """A network: `build(image_size=S, **backbone.args)` gives a module from images [B, 3, S, S] to features [B, D], `num_features` = D.

    `pretrained` takes the same and gives it with weights, for `backbone.weights: timm`.
    """

    pretrained: Maker | None = None

    def weighted(self, **options: Any) -> Any:
        """The network with weights of its own."""
        assert self.pretrained is not None
        return _resolved(self.pretrained)(**options)


@dataclass(frozen=True)
class TablePlugin(_Plugin):
    """A table of every report: `build(group, digits)` gives a `smatcli.report.tables.Table`, or None where there is nothing to show."""


KINDS: dict[str, type[_Plugin]] = {
    "methods": MethodPlugin,
    "adaptations": AdaptationPlugin,
    "sources": SourcePlugin,
    "backbones": BackbonePlugin,
    "tables": TablePlugin,
}


def _resolved(maker: Maker) -> Callable[..., Any]:
    if not isinstance(maker, str):
        return maker
    module, _, name = maker.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


@cache
def _entries() -> dict[str, dict[str, list[EntryPoint]]]:
    found: dict[str, dict[str, list[EntryPoint]]] = {group: {} for group in KINDS}
    if os.environ.get(OFF, "") in ("", "0"):
        every = entry_points()
        for group, own in found.items():
            for entry in every.select(group=PREFIX + group):
                own.setdefault(entry.name, []).append(entry)
    return found


def refresh() -> None:
    """Look again for what is installed."""
    for function in (_entries, _load, _told):
        function.cache_clear()


def names(group: str) -> list[str]:
    """Names of the installed plugins of a group ("methods", ...), sorted; nothing is imported."""
    return sorted(_entries()[group])


def find(group: str, name: str, taken: Collection[str] = ()) -> Any:
    """Load the plugin called `name`, or return None if none is installed.

    `taken` holds the built-in names of the group. Raises UserError for a broken plugin and for one with a taken name.
    """
    if name not in _entries()[group]:
        return None
    plugin = _load(group, name)
    problem = plugin if isinstance(plugin, str) else _clash(group, name, taken)
    if problem:
        raise UserError(f"{problem}; repair or uninstall it")
    return plugin


def loaded(group: str) -> dict[str, Any]:
    """Every plugin of a group that works, by name; each broken one is named once in a line of the log (stderr)."""
    found = {name: _load(group, name) for name in names(group)}
    for problem in found.values():
        if isinstance(problem, str):
            _told(f"{problem}; it is left out")
    return {name: plugin for name, plugin in found.items() if not isinstance(plugin, str)}


def listing(taken: Mapping[str, Collection[str]] | None = None) -> dict[str, str]:
    """Map every installed plugin ("methods.NAME") to its package and version, or to what is wrong with it.

    `taken` holds the built-in names by group.
    """
    rows = {}
    for group in KINDS:
        for name in names(group):
            plugin = _load(group, name)
            problem = plugin if isinstance(plugin, str) else _clash(group, name, (taken or {}).get(group, ()))
            rows[f"{group}.{name}"] = problem or _origin(_entries()[group][name][0])
    return rows


def make(group: str, name: str, *args: Any, **options: Any) -> Any:
    """What the plugin `name` builds of the arguments; UserError in one line where its code cannot be imported."""
    plugin = find(group, name)
    assert plugin is not None
    return guarded(group, name, lambda: plugin.made(*args, **options))


def guarded(group: str, name: str, call: Callable[[], Any]) -> Any:
    """What `call` gives; UserError where the plugin's module cannot be imported or lacks what it promises."""
    try:
        return call()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f"{_called(group, name)} cannot be used: {_short(error)}; repair or uninstall it") from error


@cache
def _told(line: str) -> None:
    logging.getLogger("smatcli").warning(line)


@cache
def _load(group: str, name: str) -> _Plugin | str:
    """The plugin, or a line that says what is wrong with it."""
    entries = _entries()[group][name]
    if len({entry.value for entry in entries}) > 1:
        return f"plugin {group}.{name} is in more than one package: {', '.join(map(_origin, entries))}"
    try:
        found = entries[0].load()
        problem = _problem(group, name, found)
    except Exception as error:  # a plugin's module may raise anything
        problem = f"cannot be loaded: {_short(error)}"
    return f"{_called(group, name)} {problem}" if problem else found


def _problem(group: str, name: str, found: Any) -> str:
    """What is wrong with the object of an entry point, empty if nothing is."""
    if not isinstance(found, KINDS[group]):
        return f"is a {type(found).__name__}, not a smatcli.plugins.{KINDS[group].__name__}"
    pattern = {"backbones": _BACKBONE, "sources": _KIND, "tables": _KIND}.get(group, _NAME)
    if not pattern.fullmatch(name):
        return f"has a name that cannot be one ({pattern.pattern})"
    settings = getattr(found, "settings", None)
    if settings is None:
        return "has no settings (a model with its name)" if group == "methods" else ""
    return _settings_problem(group, name, settings)


def _settings_problem(group: str, name: str, settings: Any) -> str:
    from pydantic import BaseModel, ValidationError

    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        return "has settings that are no pydantic model"
    if settings.model_config.get("extra") != "forbid":
        return f"has settings that let unknown keys pass: derive {settings.__name__} from smatcli.config.base.Strict"
    if group == "methods":
        field = settings.model_fields.get("name")
        if field is None or get_origin(field.annotation) is not Literal or get_args(field.annotation) != (name,):
            return f'needs `name: Literal["{name}"] = "{name}"` in {settings.__name__}'
    elif group == "adaptations":
        try:
            settings()
        except ValidationError:
            return f"needs a default for every value of {settings.__name__}"
    return ""


def _clash(group: str, name: str, taken: Collection[str]) -> str:
    return f"{_called(group, name)} has the name of a built-in one" if name in taken else ""


def _called(group: str, name: str) -> str:
    return f"plugin {group}.{name} of {_origin(_entries()[group][name][0])}"


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if isinstance(error, SmatError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 200 else text[:197] + "..."


def unknown(group: str, word: str, name: str, built_in: list[str]) -> UserError:
    """The error for a name that neither this package nor a plugin has."""
    known = [*built_in, *names(group)]
    return UserError(f"unknown {word} {name!r}{nearest(name, known)} (known: {', '.join(known)})")
