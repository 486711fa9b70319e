"""Describe the validation errors of pydantic in one line each, in terms of the recipe."""

from typing import Any

from pydantic import BaseModel, ValidationError

from smatcli.config import yaml_text
from smatcli.config.shape import keys_at, paths_ending_in
from smatcli.errors import nearest

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} item(s)",
}

Path = tuple[str | int, ...]


def describe(error: ValidationError, model: type[BaseModel], data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a (dotted path, message) pair per problem. Unknown keys come first, and each path appears once."""
    unknown: dict[str, str] = {}
    missing: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        kind, ctx = item["type"], item.get("ctx", {})
        path = data_path(item["loc"], data, append_last=kind in ("missing", "extra_forbidden"))
        dotted = ".".join(map(str, path))
        if kind == "extra_forbidden":
            unknown[dotted] = _unknown_key(path, model, data)
        elif kind == "missing" and isinstance(path[-1], int):
            dotted = ".".join(map(str, path[:-1]))
            wrong.setdefault(dotted, []).append("a list of two, such as [a, b]")
        elif kind in ("missing", "union_tag_not_found"):
            name = dotted if kind == "missing" else f"{dotted}.name"
            missing.setdefault(name, f"{name} is missing; set it in the recipe or as {name}=...")
        elif kind == "tuple_type":
            wrong.setdefault(dotted, []).append("a list of two, such as [a, b]")
        elif kind == "value_error":
            wrong.setdefault(dotted, []).append(str(ctx.get("error", item["msg"])))
            values[dotted] = _NO_VALUE
        elif kind == "union_tag_invalid":
            wrong.setdefault(f"{dotted}.name", []).append(ctx["expected_tags"])
            values[f"{dotted}.name"] = item["input"].get("name")
        else:
            wrong.setdefault(dotted, []).append(_EXPECTED[kind].format(**ctx) if kind in _EXPECTED else item["msg"])
        values.setdefault(dotted, item["input"])
    lines = [*unknown.items(), *missing.items()]
    for dotted, expected in wrong.items():
        what = " or ".join(dict.fromkeys(expected))
        got = values[dotted]
        place = dotted or "the recipe"
        lines.append(
            (dotted, what if got is _NO_VALUE and not dotted else f"{place}: {what}" if got is _NO_VALUE else _mismatch(place, what, got))
        )
    return lines


_NO_VALUE = object()


def _mismatch(place: str, expected: str, got: Any) -> str:
    shown = yaml_text.flow(got)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    kind = {str: "text", bool: "true/false", int: "integer", float: "number", list: "list", dict: "mapping", type(None): "nothing"}.get(
        type(got), ""
    )
    return f"{place}: expected {expected}, got {shown} ({kind})"


def data_path(loc: Path, data: Any, append_last: bool = False) -> Path:
    """Return `loc` without the names that pydantic adds for the alternatives of a union."""
    path: list[str | int] = []
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(data, dict) and step in data:
            data = data[str(step)]
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        elif not (last and append_last):
            continue
        path.append(step)
    return tuple(path)


def _unknown_key(path: Path, model: type[BaseModel], data: dict[str, Any]) -> str:
    key, dotted = str(path[-1]), ".".join(map(str, path))
    valid = keys_at(model, path[:-1], data)
    hint = nearest(key, valid)
    if not hint:
        elsewhere = paths_ending_in(model, key, data)
        if elsewhere:
            hint = f"; did you mean {' or '.join(elsewhere[:3])}?"
        elif valid:
            hint = f"; valid keys here: {', '.join(valid)}"
    return f"unknown key {dotted!r}{hint}"
