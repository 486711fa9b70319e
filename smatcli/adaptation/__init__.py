"""Meta-test adaptations by name. A new one: one file, one line in `ADAPTATIONS`, its settings in `AdaptConfig`, one row of the tests."""

from collections.abc import Callable
from typing import Any

from smatcli.adaptation.dipa import Dipa
from smatcli.adaptation.exhaustive import Exhaustive
from smatcli.adaptation.flip import Flip
from smatcli.adaptation.full import Full
from smatcli.adaptation.joint import Joint
from smatcli.adaptation.lora import Lora
from smatcli.adaptation.proto import Proto
from smatcli.config.schema import AdaptConfig
from smatcli.errors import UserError, nearest
from smatcli.seams import Adaptation

ADAPTATIONS: dict[str, Callable[[AdaptConfig], Adaptation]] = {
    "proto": lambda config: Proto(),
    "flip": lambda config: Flip(config.flip),
    "full": lambda config: Full(config.full),
    "lora": lambda config: Lora(config.lora),
    "joint": lambda config: Joint(config.joint),
    "exhaustive": lambda config: Exhaustive(config.exhaustive),
    "dipa": lambda config: Dipa(config.dipa),
}

LATER: dict[str, dict[str, Any]] = {"flip": {"copies": 1}}
NEEDS_EXPERTS = {"flip", "exhaustive", "joint"}


def check_adaptation(name: str) -> None:
    """UserError with the nearest name when no adaptation is called `name`."""
    if name not in ADAPTATIONS:
        raise UserError(f"unknown adaptation {name!r}{nearest(name, list(ADAPTATIONS))} (known: {', '.join(ADAPTATIONS)})")


def build_adaptation(name: str, config: AdaptConfig) -> Adaptation:
    """The adaptation called `name` with its part of `config`; UserError with the nearest name when it is unknown."""
    check_adaptation(name)
    return ADAPTATIONS[name](config)


def variant(name: str, config: AdaptConfig) -> str:
    """The adaptation with those of its settings that are not the default: "flip", "flip-leave-one-out", "flip-rounds3-rho0.01"."""
    chosen = getattr(config, name, None)
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
    chosen = getattr(config, name, None)
    return config.search.kind != "none" and getattr(chosen, "lr", 0) is None


def facts(name: str, config: AdaptConfig) -> dict[str, Any]:
    """Settings of an adaptation as results keep them; options that came later are left out at their default, as older results."""
    chosen = getattr(config, name, None)
    found = {} if chosen is None else chosen.model_dump(mode="json")
    if has_search(name, config):
        found["search"] = config.search.model_dump(mode="json")
    return {key: value for key, value in found.items() if key not in LATER.get(name, {}) or value != LATER[name][key]}
