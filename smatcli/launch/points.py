"""A point: one run of a sweep or a suite, with the recipe overrides that define it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from smatcli.config import Loaded, value_text
from smatcli.config.schema import TrainRecipe
from smatcli.safe.tree import flatten

META_TEST = ("data.id", "data.ood", "data.ood_split")


@dataclass(frozen=True)
class Point:
    """A run of a batch. `values` identify it in the table, and `overrides` define its recipe and run directory."""

    name: str
    values: dict[str, str]
    overrides: tuple[str, ...]
    loaded: Loaded

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.loaded.recipe.run)

    def placed(self, device: str | None, side_by_side: int = 1) -> tuple[str, ...]:
        """Return the overrides for a run on `device`. Parallel runs share the CPU threads, unless the recipe sets their number."""
        extra = [f"device={device}"] if device else []
        if side_by_side > 1 and self.loaded.recipe.threads is None:
            extra.append(f"threads={max(1, (os.cpu_count() or 1) // side_by_side)}")
        return (*self.overrides, *extra)


def eval_overrides(recipe: TrainRecipe) -> list[str]:
    """Return the meta-test settings as overrides, since the recipe in the run directory may have different settings."""
    values = flatten(recipe.model_dump(mode="json"))
    return [f"{key}={value_text(value)}" for key, value in values.items() if key.startswith(("eval.", "adapt.")) or key in META_TEST]


def file_text(value: str) -> str:
    """Return a value as part of a folder name. Characters other than letters, digits and `._+-` become "_"."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_")[:60] or "empty"
