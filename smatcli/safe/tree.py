"""Nested dictionaries, such as recipes and settings: flatten them, and compare their values."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "(missing)"})()
"""The value of a key that a tree lacks; it differs from every other value, None included."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by dotted key; an empty dictionary is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def differing_values(trees: Sequence[Mapping[str, Any]], missing: Any = MISSING) -> dict[str, list[Any]]:
    """Return the dotted keys whose values differ between trees, in order of appearance, with the value of each tree (or `missing`)."""
    flat = [flatten(tree) for tree in trees]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key, missing) for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values[1:])}


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two trees differ, sorted."""
    return sorted(differing_values([first, second]))
