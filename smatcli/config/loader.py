"""Load recipes from YAML and overrides, and record the origin of every value."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from smatcli.config import yaml_text
from smatcli.config.extended import with_plugins
from smatcli.config.find import find_recipe
from smatcli.config.llm import LlmRecipe
from smatcli.config.overrides import apply_overrides
from smatcli.config.problems import data_path, describe
from smatcli.config.protocols import expand, expand_overrides
from smatcli.config.schema import PretrainRecipe, TrainRecipe
from smatcli.config.segment import SegmentRecipe
from smatcli.config.tune import TuneRecipe
from smatcli.errors import UserError, nearest
from smatcli.safe.files import pointer_kind
from smatcli.safe.tree import flatten

AnyVisionRecipe = TrainRecipe | PretrainRecipe | TuneRecipe | SegmentRecipe
AnyRecipe = AnyVisionRecipe | LlmRecipe
KINDS: dict[str, type[AnyRecipe]] = {
    "train": TrainRecipe,
    "pretrain": PretrainRecipe,
    "tune": TuneRecipe,
    "segment": SegmentRecipe,
    "llm": LlmRecipe,
}
MAX_BYTES = 1_000_000
COMMAND_LINE, DEFAULT = "command line", "default"


@dataclass(frozen=True)
class Loaded:
    """A validated recipe; `origins` maps each dotted key to "file PATH", "default" or "command line"."""

    recipe: AnyRecipe
    origins: dict[str, str]
    path: Path
    overrides: tuple[str, ...] = ()


def verb(kind: str) -> str:
    """Return the command that runs a recipe of a kind, without `smat`."""
    return "llm train" if kind == "llm" else kind


def vision(recipe: AnyRecipe) -> AnyVisionRecipe:
    """Return the recipe; UserError if it has no backbone."""
    if isinstance(recipe, LlmRecipe):
        raise UserError(f"{recipe.run}: is a run of `smat {verb(recipe.kind)}`, a language model; give a run of a vision transformer")
    return recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = (), kind: str | None = None) -> Loaded:
    """Read, override and validate a recipe, given by path or packaged name. Raises UserError if it is invalid or not of `kind`."""
    file = find_recipe(path)
    return build_recipe(_read(file), file, overrides, kind)


def build_recipe(given: Mapping[str, Any], file: Path, overrides: Sequence[str] = (), kind: str | None = None) -> Loaded:
    """Override and validate the recipe data `given`, which come from `file`. Raises UserError if they are invalid or not of `kind`."""
    data, keys = apply_overrides(expand(given), expand_overrides(overrides))
    if kind in KINDS and data.get("kind") in KINDS and data["kind"] != kind:
        raise UserError(f"{file}: is a {data['kind']} recipe; run it with `smat {verb(data['kind'])} {file}`")
    recipe = _validate(data, file, keys)
    origins = {key: _origin(key, data, keys, f"file {file}") for key in flatten(recipe.model_dump(mode="json"))}
    return Loaded(recipe, origins, file, tuple(overrides))


def dump_recipe(recipe: BaseModel) -> str:
    """Return all values as YAML. Loading it gives an equal recipe."""
    return yaml_text.dump(recipe.model_dump(mode="json"))


def _read(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        raw = file.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if size > MAX_BYTES:
        raise UserError(f"{file}: {size} bytes is too large for a recipe; give a YAML file")
    if not raw.strip():
        raise UserError(f"{file}: the recipe is empty; `smat recipes ls` lists examples")
    if kind := pointer_kind(raw):
        raise UserError(f"{file}: is a {kind} pointer, not the file itself; download its content first")
    try:
        data = yaml_text.parse(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise UserError(f"{file}: is not a text file; a recipe is YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    if data is None:
        raise UserError(f"{file}: the recipe contains only comments; `smat recipes ls` lists examples")
    if not isinstance(data, dict):
        raise UserError(f"{file}: a recipe must be a mapping (key: value), not a {type(data).__name__}")
    return data


def _validate(data: dict[str, Any], file: Path, keys: Sequence[str]) -> AnyRecipe:
    kind = data.get("kind")
    if "kind" not in data:
        raise UserError(f"{file}: kind is missing; set `kind: train` or `kind: pretrain`")
    if not isinstance(kind, str) or kind not in KINDS:
        got = f"{yaml_text.flow(kind)}{nearest(str(kind), list(KINDS))}"
        raise UserError(f"{_where('kind', file, keys)}: kind: expected {' or '.join(KINDS)}, got {got}")
    model: Any = with_plugins(KINDS[kind], data)
    try:
        return _parse(model, data)
    except RecursionError:
        raise UserError(f"{file}: an alias (*name) contains itself; write the value out") from None
    except ValidationError as error:
        problems = describe(error, model, data)
    first, line = problems[0]
    more = f" (and {len(problems) - 1} more: {', '.join(path or 'the recipe' for path, _ in problems[1:6])})" if problems[1:] else ""
    raise UserError(f"{_where(first, file, keys)}: {line}{more}") from None


def _parse(model: type[AnyRecipe], data: dict[str, Any]) -> AnyRecipe:
    """Validate strictly. Lists become tuples and 1e3 becomes an integer, but text and booleans never become numbers."""
    try:
        text = json.dumps(data)
    except ValueError:
        raise RecursionError from None
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        data = json.loads(text)
        if not _whole_floats(error, data):
            raise
    return model.model_validate_json(json.dumps(data), strict=True)


def _whole_floats(error: ValidationError, data: dict[str, Any]) -> bool:
    """Convert whole floats (`steps: 1e3`) to integers where an integer is expected. Returns whether any were converted."""
    converted = False
    for item in error.errors(include_url=False):
        value = item["input"]
        if item["type"] in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
            *parents, last = data_path(item["loc"], data)
            target: Any = data
            for step in parents:
                target = target[step]
            target[last] = int(value)
            converted = True
    return converted


def _where(key: str, file: Path, keys: Sequence[str]) -> str:
    return COMMAND_LINE if any(_covers(given, key) or _covers(key, given) for given in keys) and key else str(file)


def _covers(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _origin(key: str, data: dict[str, Any], keys: Sequence[str], file: str) -> str:
    if any(_covers(given, key) or (_covers(key, given) and given[len(key) + 1 :].split(".")[0].isdecimal()) for given in keys) and _given(
        key, data
    ):
        return COMMAND_LINE
    return file if _given(key, data) else DEFAULT


def _given(key: str, data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    if key in data:
        return True
    return any(key.startswith(f"{step}.") and _given(key[len(step) + 1 :], value) for step, value in data.items())
