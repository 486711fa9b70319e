"""Plugins: methods, adaptations, sources, backbones and tables of other packages, found by their entry points (docs/extend.md).

A plugin is imported only when a recipe, an option or a report uses a name that is not built in, so a broken plugin affects nothing
else. This module does not import torch.
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

OFF = "SMAT_NO_PLUGINS"  # set to 1 to ignore all plugins
PREFIX = "smatcli."
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BACKBONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_KIND = re.compile(r"[a-z][a-z0-9-]*")

Maker = str | Callable[..., Any]


@dataclass(frozen=True)
class _Plugin:
    """Base of all plugins. `build` is a callable, or "module:name", which is imported on first use."""

    build: Maker

    def create(self, *args: Any, **options: Any) -> Any:
        """Call `build`. Raises ImportError or AttributeError if it does not exist."""
        return _resolve(self.build)(*args, **options)


@dataclass(frozen=True)
class MethodPlugin(_Plugin):
    """A meta-tuning method: `build(settings, backbone)` returns a `smatcli.methods.base.FlatMethod`.

    `settings` is a subclass of `smatcli.config.base.Strict` with `name: Literal["its name"]`; its fields are the keys of `method:` in a
    recipe. `label` is the column head in reports.
    """

    settings: "type[BaseModel] | None" = None
    label: str = ""


@dataclass(frozen=True)
class AdaptationPlugin(_Plugin):
    """A meta-test adaptation: `build(settings)`, or `build()` without settings, returns a `smatcli.seams.Adaptation`.

    `settings` is a subclass of `Strict` with a default for every field; its fields are the keys of `adapt.NAME:` in a recipe. If it has a
    field `lr` and that is null, the rate is searched; the adaptation then needs `at(rate)`, which returns a copy with another rate.
    """

    settings: "type[BaseModel] | None" = None
    needs_experts: bool = False


@dataclass(frozen=True)
class SourcePlugin(_Plugin):
    """A kind of source data: `build(path, **settings)` returns a `smatcli.data.sources.ImageSource`.

    `smat data prepare NAME PATH...` prepares stores from it. The fields of `settings`, a subclass of `Strict`, become its options:
    numbers, text, booleans, or lists of these. `size` (pixels) and `fit` are the defaults of the options with these names.
    """

    help: str = ""
    settings: "type[BaseModel] | None" = None
    size: int = 128
    fit: Literal["crop", "squash"] = "squash"


@dataclass(frozen=True)
class BackbonePlugin(_Plugin):
    """A network: `build(image_size=S, **backbone.args)` returns a module that maps images [B, 3, S, S] to features [B, num_features].

    `pretrained` takes the same arguments and returns the network with its weights, for `backbone.weights: timm`.
    """

    pretrained: Maker | None = None

    def create_pretrained(self, **options: Any) -> Any:
        """Return the network with its pre-trained weights."""
        assert self.pretrained is not None
        return _resolve(self.pretrained)(**options)


@dataclass(frozen=True)
class TablePlugin(_Plugin):
    """A table of every report: `build(group, digits)` returns a `smatcli.report.tables.Table`, or None if it would be empty."""


KINDS: dict[str, type[_Plugin]] = {
    "methods": MethodPlugin,
    "adaptations": AdaptationPlugin,
    "sources": SourcePlugin,
    "backbones": BackbonePlugin,
    "tables": TablePlugin,
}


def _resolve(maker: Maker) -> Callable[..., Any]:
    if not isinstance(maker, str):
        return maker
    module, _, name = maker.partition(":")
    value: Any = import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


@cache
def _entries() -> dict[str, dict[str, list[EntryPoint]]]:
    entries: dict[str, dict[str, list[EntryPoint]]] = {group: {} for group in KINDS}
    if os.environ.get(OFF, "") in ("", "0"):
        installed = entry_points()
        for group, by_name in entries.items():
            for entry in installed.select(group=PREFIX + group):
                by_name.setdefault(entry.name, []).append(entry)
    return entries


def names(group: str) -> list[str]:
    """Return the sorted names of the installed plugins of a group ("methods", ...), without importing them."""
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
    """Return all working plugins of a group by name. Each broken one is reported once in the log (stderr) and skipped."""
    plugins = {name: _load(group, name) for name in names(group)}
    for problem in plugins.values():
        if isinstance(problem, str):
            _warn_once(f"{problem}; skipped")
    return {name: plugin for name, plugin in plugins.items() if not isinstance(plugin, str)}


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
    """Call `build` of the plugin `name`. Raises UserError in one line if its code cannot be imported."""
    plugin = find(group, name)
    assert plugin is not None
    return guarded(group, name, lambda: plugin.create(*args, **options))


def guarded(group: str, name: str, call: Callable[[], Any]) -> Any:
    """Return `call()`. Raises UserError if the module of the plugin cannot be imported or lacks the named attribute."""
    try:
        return call()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f"{_called(group, name)} cannot be used: {_short(error)}; repair or uninstall it") from error


@cache
def _warn_once(line: str) -> None:
    logging.getLogger("smatcli").warning(line)


@cache
def _load(group: str, name: str) -> _Plugin | str:
    """Return the plugin, or one line that describes its problem."""
    entries = _entries()[group][name]
    if len({entry.value for entry in entries}) > 1:
        return f"plugin {group}.{name} is in more than one package: {', '.join(map(_origin, entries))}"
    try:
        plugin = entries[0].load()
        problem = _problem(group, name, plugin)
    except Exception as error:  # the module of a plugin may raise anything
        problem = f"cannot be loaded: {_short(error)}"
    return f"{_called(group, name)} {problem}" if problem else plugin


def _problem(group: str, name: str, plugin: Any) -> str:
    """Describe the problem of the object behind an entry point; empty if there is none."""
    if not isinstance(plugin, KINDS[group]):
        return f"is a {type(plugin).__name__}, not a smatcli.plugins.{KINDS[group].__name__}"
    pattern = {"backbones": _BACKBONE, "sources": _KIND, "tables": _KIND}.get(group, _NAME)
    if not pattern.fullmatch(name):
        return f"has an invalid name (it must match {pattern.pattern})"
    settings = getattr(plugin, "settings", None)
    if settings is None:
        return "has no settings (a model with its name)" if group == "methods" else ""
    return _settings_problem(group, name, settings)


def _settings_problem(group: str, name: str, settings: Any) -> str:
    from pydantic import BaseModel, ValidationError

    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        return "has settings that are not a pydantic model"
    if settings.model_config.get("extra") != "forbid":
        return f"has settings that accept unknown keys: derive {settings.__name__} from smatcli.config.base.Strict"
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
    return f"{_called(group, name)} has the name of a built-in plugin" if name in taken else ""


def _called(group: str, name: str) -> str:
    return f"plugin {group}.{name} of {_origin(_entries()[group][name][0])}"


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if isinstance(error, SmatError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 200 else text[:197] + "..."


def unknown(group: str, word: str, name: str, built_in: list[str]) -> UserError:
    """Return the error for a name that is neither built in nor a plugin."""
    choices = [*built_in, *names(group)]
    return UserError(f"unknown {word} {name!r}{nearest(name, choices)} (known: {', '.join(choices)})")
