"""Labels of rows in tuning and segmentation tables: runs that differ only in seed and dataset share a label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from smatcli.report.results.runs import Run
from smatcli.safe.tree import differing_values, flatten

# The order of the rows, as in MLAE's Table 1: full and linear first.
ORDER = ("full", "linear", "bias", "vpt-shallow", "vpt-deep", "gapt", "adapter", "adaptformer", "ssf", "lora", "mlae", "pmoe")
# Settings that may differ within a row; seeds are averaged and datasets are columns.
FREE = frozenset(
    {"run", "seed", "device", "threads", "precision", "deterministic", "data.root", "data.dataset", "tune.memory", "tune.merged"}
)
LONGEST = 40  # characters of a value in a label


class Labelled(Protocol):
    """A finished run with the label of its row, its dataset (the column), tuner and seed."""

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
    """Return the items in the order of their rows, with different labels for recipes that differ.

    A second run with the label, dataset and seed of another is skipped, with a line in `lines`: it would count a seed twice.
    """
    families: dict[tuple[str, str], set[str]] = {}
    for item in items:
        families.setdefault((item.label, item.dataset), set()).add(_settings(item.run))
    differing: dict[str, list[str]] = {}
    for (label, _), found in families.items():
        keys = differing_values([json.loads(text) for text in sorted(found)], missing=None)
        differing.setdefault(label, []).extend(key for key in keys if key not in differing.get(label, ()))
    kept: list[Item] = []
    first: dict[tuple[str, str, int], Item] = {}
    for item in items:
        mine = replace(item, label=_named(item, differing[item.label]))  # type: ignore[type-var]
        earlier = first.setdefault((mine.label, mine.dataset, mine.seed), mine)
        if earlier is mine:
            kept.append(mine)
        else:
            lines.append(f"{item.run.path}: skipped, same settings and seed as {earlier.run.path}")
    return sorted(kept, key=lambda item: (ORDER.index(item.tuner) if item.tuner in ORDER else len(ORDER), item.label))


def renamed(items: Sequence[Item], names: Mapping[str, str]) -> tuple[list[Item], dict[str, str]]:
    """Return the items with their labels replaced by `--names` (by run or row label), and the names that match no item.

    A name given for a run applies to its whole row.
    """
    chosen, rest = {}, {}
    for key, text in names.items():
        whole = f"{key}={text}"  # labels of rows may contain "=": use the longest name that matches
        labels = {name: item.label for item in items for name in (item.run.path.name, str(item.run.path), item.label)}
        fitting = max((name for name in labels if whole.startswith(f"{name}=")), key=len, default=None)
        if fitting is None:
            rest[key] = text
        else:
            chosen[labels[fitting]] = whole[len(fitting) + 1 :]
    return [replace(item, label=chosen.get(item.label, item.label)) for item in items], rest  # type: ignore[type-var]


def _settings(run: Run) -> str:
    return json.dumps({k: v for k, v in flatten(run.recipe).items() if k not in FREE}, sort_keys=True, default=str)


def _named(item: Labelled, keys: Sequence[str]) -> str:
    values = flatten(item.run.recipe)
    words = []
    for key in keys:
        short = key.rpartition(".")[2]
        name = short if [k.rpartition(".")[2] for k in keys].count(short) == 1 else key
        value = values.get(key)
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if f"{name}={text}" not in item.label.split(" "):
            words.append(f"{name}={text if len(text) <= LONGEST else '...' + text[-LONGEST:]}")
    return " ".join([item.label, *words])
