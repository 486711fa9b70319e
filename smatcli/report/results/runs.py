"""Run directories of a report: find them, and read their recipes and the validations in their `metrics.jsonl`."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.safe.text import parse_json, read_object, yaml_value

# Keys of a validation record in order of preference: zeros with the inference gate, expected zeros.
SPARSITY = ("sparsity_inference", "sparsity", "sparsity_expected")
SKIPPED_FOLDERS = {"checkpoints", "__pycache__"}


@dataclass
class Run:
    """A run directory. `name` is the shortest suffix of its path that is unique in the report."""

    path: Path
    kind: str = ""
    method: str = ""
    tau: float | None = None
    experts: int | None = None
    meta_batch: int = 1
    ood: frozenset[str] = frozenset()
    name: str = ""
    valid: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    seeds: tuple[int, ...] = ()

    @property
    def seed(self) -> int | None:
        """The training seed."""
        return whole(self.recipe.get("seed"))

    @property
    def backbone(self) -> str:
        """Name of the vision transformer in timm, empty if unknown."""
        return str(section(self.recipe, "backbone").get("name", ""))

    @property
    def image_size(self) -> int | None:
        """Side of the input images, pixels."""
        return whole(section(self.recipe, "backbone").get("image_size"))

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep if this run is a point of a sweep (`.../tau=0.7`), else None."""
        return self.path.parent if "=" in self.path.name else None

    @property
    def coordinates(self) -> dict[str, str]:
        """Coordinates of a sweep point: {tau: 0.7, experts: 8} for `tau=0.7,experts=8`; empty for other runs."""
        parts = (part.partition("=") for part in self.path.name.split(",") if "=" in part)
        return {key: value for key, _, value in parts}

    @property
    def sparsity(self) -> float | None:
        """Fraction of zeros in the experts of the evaluated checkpoint, with the inference gate, as logged by its validation."""
        state = read_object(self.path / "checkpoints" / "best" / "state.json") or {}
        best = whole(_dict(state.get("state")).get("step"))
        records = [r for r in self.valid if best is None or r["step"] == best]
        logged = [number(records[-1].get(key)) for key in SPARSITY] if records else []
        return next((value for value in logged if value is not None), None)


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the run directories at or below `root`, sorted; folders inside a run are not searched."""
    if (root / "recipe.yaml").is_file() or (root / "eval").is_dir():
        yield root
        return
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and e.name not in SKIPPED_FOLDERS and not e.name.startswith("."))
    for name in names:
        yield from run_folders(root / name)


def read_run(path: Path) -> Run:
    """Read a run from its recipe and log, if they exist. Raises `UserError` for a recipe that is not YAML."""
    recipe = _recipe(path / "recipe.yaml")
    method = _dict(recipe.get("method"))
    run = Run(path, str(recipe.get("kind", "")), str(method.get("name", "")), experts=whole(method.get("experts")), recipe=recipe)
    run.tau = number(_dict(method.get("sparsity")).get("tau"))
    run.meta_batch = whole(_dict(recipe.get("train")).get("meta_batch")) or 1
    run.ood = frozenset(str(name) for name in _dict(recipe.get("data")).get("ood") or [])
    run.valid = list(_validations(path / "metrics.jsonl"))
    return run


def _validations(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the validation records of a `metrics.jsonl`; incomplete lines are skipped."""
    for line in _text(path).splitlines():
        if '"valid"' in line:
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("kind") == "valid" and isinstance(record.get("step"), int):
                yield record


def _recipe(path: Path) -> dict[str, Any]:
    import yaml

    try:
        return _dict(yaml_value(yaml.SafeLoader(_text(path)), frozenset({"timestamp"})))  # libyaml crashes on deep nesting
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{path}: not valid YAML; restore it, or exclude this run from the report") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def section(recipe: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return the part of a recipe below `keys`; empty if it is missing."""
    part: Any = recipe
    for key in keys:
        part = _dict(part).get(key)
    return _dict(part)


def number(value: Any) -> float | None:
    """Return `value` as a finite float, or None."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def whole(value: Any) -> int | None:
    """Return `value` as an int, or None."""
    found = number(value)
    return None if found is None else int(found)


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest unique suffix of each path; those of sweep points include the name of the sweep."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        length = 2 if "=" in own[-1] else 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names
