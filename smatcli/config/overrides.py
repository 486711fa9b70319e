"""`key.path=value` overrides of a recipe."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import yaml

from smatcli.config import yaml_text
from smatcli.errors import UserError

_KEY = re.compile(r"[^=\s]+")


def split_override(text: str) -> tuple[str, Any]:
    """Split "a.b=value" into ('a.b', value); the value is YAML and may contain "="."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key) or "" in key.split("."):
        raise UserError(f"override {text!r} is not of the form key.path=value")
    try:
        return key, yaml_text.parse_value(value.strip())
    except yaml.YAMLError as error:
        raise UserError(f"override {key}: cannot read {value!r}: {getattr(error, 'problem', None) or 'not a value'}") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of `data` with the overrides, and the overridden keys. Raises UserError if a key is given twice."""
    data = copy.deepcopy(data)
    keys: list[str] = []
    for text in overrides:
        key, value = split_override(text)
        if key in keys:
            raise UserError(f"override {key} is given twice; give it once")
        keys.append(key)
        _set(data, key, value)
    return data, keys


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    steps = key.split(".")
    target: Any = data
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if isinstance(target, list):
            index = _index(target, step, key)
            if last:
                target[index] = value
            else:
                target = target[index]
        elif isinstance(target, dict):
            if last:
                target[step] = value
            else:
                if target.get(step) is None:
                    target[step] = {}
                target = target[step]
        else:
            where = ".".join(steps[:i])
            raise UserError(f"override {key}: {where} is the value {yaml_text.flow(target)} and has no key {step!r}")


def _index(target: list[Any], step: str, key: str) -> int:
    if step.isdecimal() and int(step) < len(target):
        return int(step)
    raise UserError(
        f"override {key}: {step!r} is not an index of a list of {len(target)} (the first is 0); or give the whole list: key=[a, b]"
    )
