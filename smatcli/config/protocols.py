"""Named episode protocols: `episode: md-oneshot` in a recipe, `--episode 5w1s` on the command line."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smatcli.config import yaml_text
from smatcli.config.overrides import apply_overrides
from smatcli.config.problems import describe
from smatcli.config.schema import EpisodeConfig
from smatcli.errors import UserError, nearest

PROTOCOLS: dict[str, dict[str, Any]] = {
    "meta-dataset": {"kind": "meta-dataset"},
    "md-oneshot": {"kind": "meta-dataset", "balanced": 1},
    "variable": {"kind": "variable"},
    "fixed": {"kind": "fixed"},
}
"""Settings of the named protocols. N-way K-shot protocols also have names, such as 5w5s, 20w1s15q, 5-10w1-5s10q and 5w5sautoq."""

LIST_SUFFIXES = (".npz", ".h5")  # lists of smat, and fixed validation episodes of PMF
_FIXED = re.compile(r"(\d+)(?:-(\d+))?w(\d+)(?:-(\d+))?s(?:(\d+|auto)q)?")
_KEYS = (("episode",), ("eval", "episode"))


def protocol(name: str) -> dict[str, Any]:
    """Return the settings of the protocol or episode list `name`. Raises UserError with the nearest name if it does not exist."""
    if name in PROTOCOLS:
        return dict(PROTOCOLS[name])
    if match := _FIXED.fullmatch(name):
        ways, more_ways, shots, more_shots, queries = match.groups()
        settings = {"kind": "fixed", "ways": _pair(ways, more_ways), "shots": _pair(shots, more_shots)}
        return settings | ({} if queries is None else {"queries": queries if queries == "auto" else int(queries)})
    if name.endswith(LIST_SUFFIXES) or Path(name).is_file():
        return {"kind": "list", "file": name}
    raise UserError(
        f"unknown episode protocol {name!r}{nearest(name, list(PROTOCOLS))} (use {', '.join(PROTOCOLS)}, N-way K-shot such as 5w5s or "
        "5w1s15q, or the file of an episode list)"
    )


def _pair(low: str, high: str | None) -> int | list[int]:
    return int(low) if high is None else [int(low), int(high)]


def expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """Replace protocol names in recipe data with their settings."""
    result = dict(data)
    for *parents, last in _KEYS:
        target = result
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                break
            target[parent] = target = dict(target[parent])
        else:
            if isinstance(target.get(last), str):
                target[last] = protocol(target[last])
    return result


def expand_overrides(overrides: Sequence[str]) -> list[str]:
    """Replace protocol names in overrides with their settings, so that `eval.episode=5w5s eval.episode.queries=15` works."""
    return [_expanded(text) for text in overrides]


def _expanded(text: str) -> str:
    key, equals, value = text.partition("=")
    named = tuple(key.strip().split(".")) in _KEYS and equals and not value.strip().startswith("{")
    return f"{key}={yaml_text.flow(protocol(value.strip()))}" if named else text


def episode_config(name: str, overrides: Sequence[str] = ()) -> EpisodeConfig:
    """Return the protocol `name` with overrides (`queries=15`). Raises UserError if it is invalid."""
    data, _ = apply_overrides(protocol(name), overrides)
    try:
        return EpisodeConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"episode protocol {name}: {describe(error, EpisodeConfig, data)[0][1]}") from None
