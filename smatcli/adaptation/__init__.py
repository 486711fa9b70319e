"""Meta-test adaptations by name. A new one: one file, one line in `ADAPTATIONS`, its settings in `AdaptConfig`, one row of the tests."""

from collections.abc import Callable

from smatcli.adaptation.flip import Flip
from smatcli.adaptation.proto import Proto
from smatcli.config.schema import AdaptConfig
from smatcli.errors import UserError, nearest
from smatcli.seams import Adaptation

ADAPTATIONS: dict[str, Callable[[AdaptConfig], Adaptation]] = {
    "proto": lambda config: Proto(),
    "flip": lambda config: Flip(config.flip),
}

NEEDS_EXPERTS = {"flip"}


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
    return "-".join([name, *(v if isinstance(v, str) else f"{k}{v:g}" for k, v in changed.items())])
