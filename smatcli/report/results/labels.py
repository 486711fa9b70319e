"""What the rows of tuning and segmentation tables are called: one label for runs that differ in their seed and dataset alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from smatcli.report.results.runs import Run
from smatcli.safe.tree import differing_values, flatten

# The order of rows: as in MLAE's Table 1, what is trained whole or not at all first.
ORDER = ("full", "linear", "bias", "vpt-shallow", "vpt-deep", "gapt", "adapter", "adaptformer", "ssf", "lora", "mlae", "pmoe")
# What may differ between the runs of one row: where and how they ran; seeds are averaged and datasets are columns.
FREE = frozenset(
    {"run", "seed", "device", "threads", "precision", "deterministic", "data.root", "data.dataset", "tune.memory", "tune.merged"}
)
LONGEST = 40  # letters of a value in a label


class Labelled(Protocol):
    """A finished run with its row's label, its dataset (column), its tuner and its seed."""

    @property
    def run(self) -> Run: ...
    @property
    def dataset(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def tuner(self) -> str: ...
    @property
    def seed(self) -> int: ...


Item = TypeVar("Item", bound=Labelled)


def unique_labels(items: Sequence[Item], lines: list[str]) -> list[Item]:
    """The items in the order of their rows, with labels that differ where the recipes of one dataset do.

    A second run of a row on the same dataset with the same seed is left out, and named in `lines`: it would count a seed twice.
    """
    families: dict[tuple[str, str], set[str]] = {}
    for one in items:
        families.setdefault((one.label, one.dataset), set()).add(_settings(one.run))
    told: dict[str, list[str]] = {}
    for (label, _), found in families.items():
        keys = differing_values([json.loads(text) for text in sorted(found)], missing=None)
        told.setdefault(label, []).extend(key for key in keys if key not in told.get(label, ()))
    kept: list[Item] = []
    first: dict[tuple[str, str, int], Item] = {}
    for one in items:
        mine = replace(one, label=_named(one, told[one.label]))  # type: ignore[type-var]
        known = first.setdefault((mine.label, mine.dataset, mine.seed), mine)
        if known is mine:
            kept.append(mine)
        else:
            lines.append(f"{one.run.path}: skipped, the settings and the seed of {known.run.path}")
    return sorted(kept, key=lambda one: (ORDER.index(one.tuner) if one.tuner in ORDER else len(ORDER), one.label))


def renamed(items: Sequence[Item], names: Mapping[str, str]) -> tuple[list[Item], dict[str, str]]:
    """The items with the labels of `--names` (a run's folder, or a row's label), and the names that fit none of them.

    A run's name stands for its whole row.
    """
    chosen, rest = {}, {}
    for key, text in names.items():
        whole = f"{key}={text}"  # a row's label may hold "=" itself: the longest name that fits is meant
        known = {name: one.label for one in items for name in (one.run.path.name, str(one.run.path), one.label)}
        fitting = max((name for name in known if whole.startswith(f"{name}=")), key=len, default=None)
        if fitting is None:
            rest[key] = text
        else:
            chosen[known[fitting]] = whole[len(fitting) + 1 :]
    return [replace(one, label=chosen.get(one.label, one.label)) for one in items], rest  # type: ignore[type-var]


def _settings(run: Run) -> str:
    return json.dumps({k: v for k, v in flatten(run.recipe).items() if k not in FREE}, sort_keys=True, default=str)


def _named(one: Labelled, keys: Sequence[str]) -> str:
    values = flatten(one.run.recipe)
    words = []
    for key in keys:
        short = key.rpartition(".")[2]
        name = short if [k.rpartition(".")[2] for k in keys].count(short) == 1 else key
        value = values.get(key)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if f"{name}={text}" not in one.label.split(" "):
            words.append(f"{name}={text if len(text) <= LONGEST else '...' + text[-LONGEST:]}")
    return " ".join([one.label, *words])
