"""Meta-test adaptations by name. A new one: one file, one line in `ADAPTATIONS`, its settings in `AdaptConfig`, one row of the tests.

Other packages add theirs by an entry point (`smatcli.plugins`).
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

LATER: dict[str, dict[str, Any]] = {"flip": {"copies": 1}}
NEEDS_EXPERTS = {"flip", "exhaustive", "joint"}


def check_adaptation(name: str) -> None:
    """UserError with the nearest name when no adaptation is called `name`."""
    if name not in ADAPTATIONS and plugins.find("adaptations", name) is None:
        raise plugins.unknown("adaptations", "adaptation", name, list(ADAPTATIONS))


def needs_experts(name: str) -> bool:
    """Does the adaptation called `name` work on a method with experts only?"""
    return name in NEEDS_EXPERTS if name in ADAPTATIONS else bool(plugins.find("adaptations", name).needs_experts)


def settings_of(name: str, config: AdaptConfig) -> Any:
    """The part of `config` for the adaptation called `name`, None for one without settings."""
    if name in ADAPTATIONS or hasattr(config, name):
        return getattr(config, name, None)
    plugin = plugins.find("adaptations", name)
    return None if plugin is None or plugin.settings is None else plugin.settings()


def build_adaptation(name: str, config: AdaptConfig) -> Adaptation:
    """The adaptation called `name` with its part of `config`; UserError with the nearest name when it is unknown."""
    check_adaptation(name)
    if name in ADAPTATIONS:
        return ADAPTATIONS[name](config)
    settings = settings_of(name, config)
    made: Adaptation = plugins.make("adaptations", name, *([] if settings is None else [settings]))
    return made


def variant(name: str, config: AdaptConfig) -> str:
    """The adaptation with those of its settings that are not the default: "flip", "flip-leave-one-out", "flip-rounds3-rho0.01"."""
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
    """Is the rate of the adaptation called `name` chosen by a search?"""
    chosen = settings_of(name, config)
    return config.search.kind != "none" and getattr(chosen, "lr", 0) is None


def facts(name: str, config: AdaptConfig) -> dict[str, Any]:
    """Settings of an adaptation as results keep them; options that came later are left out at their default, as older results."""
    chosen = settings_of(name, config)
    found = {} if chosen is None else chosen.model_dump(mode="json")
    if has_search(name, config):
        found["search"] = config.search.model_dump(mode="json")
    return {key: value for key, value in found.items() if key not in LATER.get(name, {}) or value != LATER[name][key]}
