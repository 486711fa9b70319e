"""Find the valid keys at a dotted path of a recipe, for suggestions in error messages."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def keys_at(model: type[BaseModel], path: tuple[str | int, ...], data: Any) -> list[str]:
    """Return the valid keys of the mapping at `path`, or an empty list if every key is valid or `path` is not a mapping."""
    annotation: Any = model
    for step in path:
        annotation = _child(_resolve(annotation, data), step)
        data = _value(data, step)
    annotation = _resolve(annotation, data)
    return list(annotation.model_fields) if _is_model(annotation) else []


def paths_ending_in(model: type[BaseModel], key: str, data: Any) -> list[str]:
    """Return the dotted paths that end in `key`, for the alternatives that `data` selects (by default, the default alternatives)."""
    paths: list[str] = []

    def walk(annotation: Any, prefix: str, value: Any) -> None:
        annotation = _resolve(annotation, value)
        if not _is_model(annotation):
            return
        for name, info in annotation.model_fields.items():
            if name == key:
                paths.append(prefix + name)
            walk(info.annotation, f"{prefix}{name}.", _value(value, name))

    walk(model, "", data)
    return paths


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _value(data: Any, step: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(step)
    if isinstance(data, list) and isinstance(step, int) and step < len(data):
        return data[step]
    return None


def _resolve(annotation: Any, data: Any) -> Any:
    """Return the alternative of a union that `data` selects by `name`; by default the last model."""
    if get_origin(annotation) is Annotated:
        return _resolve(get_args(annotation)[0], data)
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    models = [m for m in get_args(annotation) if _is_model(m)]
    chosen = data.get("name") if isinstance(data, dict) else None
    for candidate in models:
        field = candidate.model_fields.get("name")
        if field is not None and get_origin(field.annotation) is Literal and chosen in get_args(field.annotation):
            return candidate
    return models[-1] if models else next((m for m in get_args(annotation) if get_origin(m) in (dict, list)), annotation)


def _child(annotation: Any, step: str | int) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(str(step))
        return field.annotation if field is not None else Any
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) is list:
        return get_args(annotation)[0]
    return Any
