"""Meta-test adaptations by name.

To add an adaptation, write a module, and add a line to `ADAPTATIONS`, its settings to `AdaptConfig`, and a row to the tests. Other
packages add adaptations through entry points (`smatcli.plugins`).
"""

from collections.abc import Callable
from typing import Any

from smatcli import plugins
from smatcli.adaptation.dipa import Dipa
from smatcli.adaptation.exhaustive import Exhaustive
from smatcli.adaptation.flip import Flip
from smatcli.adaptation.full import Full
from smatcli.adaptation.joint import Joint
from smatcli.adaptation.lora import LoraAdaptation
from smatcli.adaptation.proto import Proto
from smatcli.config.schema import AdaptConfig
from smatcli.seams import Adaptation

ADAPTATIONS: dict[str, Callable[[AdaptConfig], Adaptation]] = {
    "proto": lambda config: Proto(),
    "flip": lambda config: Flip(config.flip),
    "full": lambda config: Full(config.full),
    "lora": lambda config: LoraAdaptation(config.lora),
    "joint": lambda config: Joint(config.joint),
    "exhaustive": lambda config: Exhaustive(config.exhaustive),
    "dipa": lambda config: Dipa(config.dipa),
}

# Options that earlier results do not have: `facts` omits them at these values, so that results stay comparable.
ADDED_OPTIONS: dict[str, dict[str, Any]] = {"flip": {"copies": 1}}
NEEDS_EXPERTS = {"flip", "exhaustive", "joint"}


def check_adaptation(name: str) -> None:
    """Raise `UserError` with the nearest name if there is no adaptation `name`."""
    if name not in ADAPTATIONS and plugins.find("adaptations", name) is None:
        raise plugins.unknown("adaptations", "adaptation", name, list(ADAPTATIONS))


def needs_experts(name: str) -> bool:
    """Whether the adaptation `name` requires a method with experts."""
    return name in NEEDS_EXPERTS if name in ADAPTATIONS else bool(plugins.find("adaptations", name).needs_experts)


def settings_of(name: str, config: AdaptConfig) -> Any:
    """Return the settings in `config` for the adaptation `name`, or None if it has no settings."""
    if name in ADAPTATIONS or hasattr(config, name):
        return getattr(config, name, None)
    plugin = plugins.find("adaptations", name)
    return None if plugin is None or plugin.settings is None else plugin.settings()


def build_adaptation(name: str, config: AdaptConfig) -> Adaptation:
    """Build the adaptation `name` with its settings in `config`. Raises `UserError` with the nearest name if it is unknown."""
    check_adaptation(name)
    if name in ADAPTATIONS:
        return ADAPTATIONS[name](config)
    settings = settings_of(name, config)
    adaptation: Adaptation = plugins.make("adaptations", name, *([] if settings is None else [settings]))
    return adaptation


def variant(name: str, config: AdaptConfig) -> str:
    """Return the adaptation's name and non-default settings, such as "flip", "flip-leave-one-out" or "flip-rounds3-rho0.01"."""
    chosen = settings_of(name, config)
    if chosen is None:
        return name
    default = type(chosen)()
    changed = {k: v for k, v in chosen.model_dump().items() if v != getattr(default, k)}
    words = [name, *(_word(k, v) for k, v in changed.items())]
    if has_search(name, config):
        standard = type(config.search)()
        other = {k: v for k, v in config.search.model_dump().items() if v != getattr(standard, k)}
        words += ["search", *(_word(k, v) for k, v in other.items())] if other else []
    return "-".join(words)


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    if isinstance(value, tuple):
        return key + "+".join(f"{v:g}" for v in value)
    return value if isinstance(value, str) else f"{key}-null" if value is None else f"{key}{value:g}"


def has_search(name: str, config: AdaptConfig) -> bool:
    """Whether a search chooses the learning rate of the adaptation `name`."""
    chosen = settings_of(name, config)
    return config.search.kind != "none" and getattr(chosen, "lr", 0) is None


def facts(name: str, config: AdaptConfig) -> dict[str, Any]:
    """Return the settings of an adaptation as stored with results, without options of `ADDED_OPTIONS` at their defaults."""
    chosen = settings_of(name, config)
    settings = {} if chosen is None else chosen.model_dump(mode="json")
    if has_search(name, config):
        settings["search"] = config.search.model_dump(mode="json")
    added = ADDED_OPTIONS.get(name, {})
    return {key: value for key, value in settings.items() if key not in added or value != added[key]}
