"""The tuning benchmarks as lists of tasks in groups, and the stores that hold them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from smatcli.data.catalogue.datasets import COLLECTIONS, TITLES, KnownDataset

__all__ = ["GROUPS", "SUITES", "TITLES", "grouped", "means", "stores_of", "task_of"]

SUITES: Mapping[str, tuple[KnownDataset, ...]] = {name: COLLECTIONS[name] for name in ("vtab", "fgvc")}
GROUPS: Mapping[str, tuple[KnownDataset, ...]] = {
    group: tuple(task for task in SUITES["vtab"] if task.group == group) for group in ("Natural", "Specialized", "Structured")
}


def stores_of(suite: str, files: Mapping[str, Path]) -> tuple[dict[str, KnownDataset], list[KnownDataset]]:
    """Map store name to task for the tasks of a suite that have a store in `files`, in the suite's order; also return the other tasks."""
    stores: dict[str, KnownDataset] = {}
    missing = []
    for task in SUITES[suite]:
        name = next((name for name in task.names if name in files), None)
        if name is None:
            missing.append(task)
        else:
            stores[name] = task
    return stores, missing


def task_of(store: str) -> tuple[str, KnownDataset] | None:
    """Return suite and task of a store by its name, or None if it belongs to no suite."""
    return next(((suite, task) for suite, tasks in SUITES.items() for task in tasks if store in task.names), None)


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Sort stores into VTAB-1k's groups, in its order; stores that belong to no group are under ""."""
    members: dict[str, list[str]] = {group: [] for group in (*GROUPS, "")}
    for name in names:
        match = task_of(name)
        members[match[1].group if match else ""].append(name)
    return {group: names for group, names in members.items() if names}


def means(values: Mapping[str, float], suite: str = "") -> dict[str, float]:
    """Return the mean of each complete VTAB-1k group and, if all three are complete, their mean as `Mean`.

    Without groups, `Mean` is the mean of all values. For a suite, a mean is given only if `values` has all of its tasks.
    """
    if suite == "vtab":
        group_means = {}
        for group, tasks in GROUPS.items():
            members = [value for task in tasks if (value := _value(values, task)) is not None]
            if len(members) == len(tasks):
                group_means[group] = sum(members) / len(members)
        return {**group_means, "Mean": sum(group_means.values()) / len(GROUPS)} if len(group_means) == len(GROUPS) else group_means
    complete = not suite or all(_value(values, task) is not None for task in SUITES[suite])
    return {"Mean": sum(values.values()) / len(values)} if values and complete else {}


def _value(values: Mapping[str, float], task: KnownDataset) -> float | None:
    return next((values[name] for name in task.names if name in values), None)
