"""The grid of a sweep: its axes `key=v1,v2`, and the points of their product."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.config import Loaded, load_recipe, value_text
from smatcli.config.overrides import split_override
from smatcli.errors import UserError, nearest
from smatcli.launch.points import Point, file_text

AXES = {"tau": "method.sparsity.tau", "experts": "method.experts", "seed": "seed"}
FIXED = ("run", "kind")


@dataclass(frozen=True)
class Axis:
    """A recipe key and its values. Each value is one line of text."""

    key: str
    values: tuple[str, ...]


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: "a,[1,2],b" -> ["a", "[1,2]", "b"]."""
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
    """Return the axis of a dotted key or axis name and comma-separated values. Raises UserError if a value is given twice."""
    key = AXES.get(key, key)
    texts = split_values(values)
    if "" in texts:
        raise UserError(f"axis {key}: a value is missing in {values!r}; separate values by commas: 0.5,0.7")
    if key in FIXED:
        raise UserError(f"axis {key}: a sweep sets {key} itself; sweep over another key")
    canonical = [value_text(split_override(f"{key}={text}")[1]) for text in texts]
    duplicate = next((text for i, text in enumerate(canonical) if text in canonical[:i]), None)
    if duplicate is not None:
        raise UserError(f"axis {key}: the value {duplicate} is given twice")
    return Axis(key, tuple(canonical))


def parse_grid(text: str) -> Axis:
    """Return the axis of "key=v1,v2"."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--grid {text!r} is not of the form key=v1,v2")
    return parse_axis(key.strip(), values)


def plan_points(recipe: str | Path, axes: Sequence[Axis], overrides: Sequence[str] = (), out: Path | None = None) -> list[Point]:
    """Return the points of the product of the axes, with validated recipes. The run directories are in `out` (see `sweep_folder`)."""
    if not axes:
        raise UserError("a sweep needs an axis; give --grid key=v1,v2, or `smat sweep tau RECIPE --values 0.5,0.9`")
    keys = [axis.key for axis in axes]
    duplicate = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if duplicate:
        raise UserError(f"axis {duplicate} is given twice; give all its values at once")
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
    """Return the default folder: `<run>-sweep-tau` for the axis `method.sparsity.tau`, `<run>-sweep-experts-lr` for two axes."""
    short = short_keys([axis.key for axis in axes])
    run = Path(base.recipe.run)
    return run.parent / f"{run.name}-sweep-{'-'.join(short.values())}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unambiguous ending of each dotted key."""
    short = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        length = next((n for n in range(1, len(parts) + 1) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        short[key] = ".".join(parts[-length:])
    return short


def named_axis(word: str) -> str:
    """Return the recipe key of a named axis. Raises UserError with the nearest name if there is no such axis."""
    if word in AXES:
        return AXES[word]
    raise UserError(f"{word!r} is neither a recipe nor a named axis ({', '.join(AXES)}){nearest(word, list(AXES))}")
