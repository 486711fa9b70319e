"""The points of a sweep: axes `key=v1,v2`, their product, a run directory for each."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.config import Loaded, load_recipe, value_text
from smatcli.config.overrides import split_override
from smatcli.errors import UserError, nearest

AXES = {"tau": "method.sparsity.tau", "experts": "method.experts", "seed": "seed"}
FIXED = ("run", "kind")


@dataclass(frozen=True)
class Axis:
    """One recipe key and the values it takes, as text of one line each."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep. `values` maps each axis' key to its value; `overrides` make the recipe, the run directory included."""

    name: str
    values: dict[str, str]
    overrides: tuple[str, ...]
    loaded: Loaded

    @property
    def run(self) -> Path:
        """The point's run directory."""
        return Path(self.loaded.recipe.run)


def split_values(text: str) -> list[str]:
    """ "a,[1,2],b" -> ["a", "[1,2]", "b"]: commas inside brackets and quotes separate nothing."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]


def parse_axis(key: str, values: str) -> Axis:
    """An axis from a dotted key (or a named axis) and comma-separated values; a value given twice is an error."""
    key = AXES.get(key, key)
    texts = split_values(values)
    if "" in texts:
        raise UserError(f"axis {key}: a value is missing in {values!r}; separate them by commas: 0.5,0.7")
    if key in FIXED:
        raise UserError(f"axis {key}: a sweep sets {key} itself; sweep over another key")
    canonical = [value_text(split_override(f"{key}={text}")[1]) for text in texts]
    twice = next((text for i, text in enumerate(canonical) if text in canonical[:i]), None)
    if twice is not None:
        raise UserError(f"axis {key}: the value {twice} is given twice")
    return Axis(key, tuple(canonical))


def parse_grid(text: str) -> Axis:
    """An axis from "key=v1,v2"."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--grid {text!r} is not of the form key=v1,v2")
    return parse_axis(key.strip(), values)


def plan_points(recipe: str | Path, axes: Sequence[Axis], overrides: Sequence[str] = (), out: Path | None = None) -> list[Point]:
    """Every point of the axes' product, in order, its recipe validated; the run directories lie in `out` (see `sweep_folder`)."""
    if not axes:
        raise UserError("the sweep has no axis; give --grid key=v1,v2, or `smat sweep tau RECIPE --values 0.5,0.9`")
    keys = [axis.key for axis in axes]
    twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if twice:
        raise UserError(f"axis {twice} is given twice; give all its values at once")
    base = load_recipe(recipe, overrides, kind="train")
    folder = out or sweep_folder(base, axes)
    if any(text.partition("=")[0].strip() == "run" for text in overrides):
        overrides = [text for text in overrides if text.partition("=")[0].strip() != "run"]
    short = short_keys(keys)
    points = []
    for combination in itertools.product(*(axis.values for axis in axes)):
        values = dict(zip(keys, combination, strict=True))
        name = ",".join(f"{short[key]}={file_text(value)}" for key, value in values.items())
        changes = (*overrides, *(f"{key}={value}" for key, value in values.items()), f"run={value_text(str(folder / name))}")
        points.append(Point(name, values, changes, load_recipe(recipe, changes, kind="train")))
    names = [point.name for point in points]
    clash = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if clash:
        raise UserError(f"two points would share the folder {clash}; choose values that differ in letters and digits")
    return points


def sweep_folder(base: Loaded, axes: Sequence[Axis]) -> Path:
    """`<run>-sweep-tau` for the axis `method.sparsity.tau`, `<run>-sweep-experts-lr` for two."""
    short = short_keys([axis.key for axis in axes])
    run = Path(base.recipe.run)
    return run.parent / f"{run.name}-sweep-{'-'.join(short.values())}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart."""
    short = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        length = next((n for n in range(1, len(parts) + 1) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        short[key] = ".".join(parts[-length:])
    return short


def file_text(value: str) -> str:
    """A value as part of a folder name: letters, digits and `._+-` stay, the rest becomes "_"."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_")[:60] or "empty"


def named_axis(word: str) -> str:
    """The recipe key of a named axis; UserError with the nearest name."""
    if word in AXES:
        return AXES[word]
    raise UserError(f"{word!r} is neither a recipe nor a named axis ({', '.join(AXES)}){nearest(word, list(AXES))}")
