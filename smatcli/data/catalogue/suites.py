"""The tuning benchmarks as lists of tasks in groups, and the stores that hold them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from smatcli.data.catalogue.known import Known, plain
from smatcli.data.catalogue.paper import PAPER
from smatcli.data.catalogue.tuning import FGVC, VTAB

GROUPS: Mapping[str, tuple[Known, ...]] = {"Natural": VTAB[:7], "Specialized": VTAB[7:11], "Structured": VTAB[11:]}
SUITES: Mapping[str, tuple[Known, ...]] = {"vtab": VTAB, "fgvc": FGVC}
TITLES = {"vtab": "VTAB-1k", "fgvc": "FGVC"}


def stores_of(suite: str, files: Mapping[str, Path]) -> tuple[dict[str, Known], list[Known]]:
    """Store name -> task for the tasks of a suite that are among `files`, in the suite's order, and the tasks that are not."""
    found: dict[str, Known] = {}
    missing = []
    for task in SUITES[suite]:
        name = next((name for name in (task.name, *task.also) if name in files), None)
        if name is None:
            missing.append(task)
        else:
            found[name] = task
    return found, missing


def task_of(store: str) -> tuple[str, Known] | None:
    """Suite and task of a store by its name; None for any other."""
    for suite, tasks in SUITES.items():
        for task in tasks:
            if store in (task.name, *task.also):
                return suite, task
    return None


def group_of(task: Known) -> str:
    """VTAB-1k's group of a task; empty for others."""
    return next((name for name, tasks in GROUPS.items() if task in tasks), "")


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Stores by VTAB-1k's groups, in its order; under "" those of no group."""
    found: dict[str, list[str]] = {name: [] for name in (*GROUPS, "")}
    for name in names:
        known = task_of(name)
        found[group_of(known[1]) if known else ""].append(name)
    return {group: members for group, members in found.items() if members}


def means(values: Mapping[str, float], suite: str = "") -> dict[str, float]:
    """Means of the groups that are complete and, with all three, `Mean`: the mean of the groups' means; without groups the plain mean.

    For a suite a mean is given only where each of its tasks is among `values`.
    """
    if suite == "vtab":
        found = {}
        for group, tasks in GROUPS.items():
            own = [next((values[n] for n in (task.name, *task.also) if n in values), None) for task in tasks]
            known = [value for value in own if value is not None]
            if len(known) == len(tasks):
                found[group] = sum(known) / len(known)
        return {**found, "Mean": sum(found.values()) / len(found)} if len(found) == len(GROUPS) else found
    whole = not suite or all(any(n in values for n in (task.name, *task.also)) for task in SUITES[suite])
    return {"Mean": sum(values.values()) / len(values)} if values and whole else {}


def collections() -> dict[str, tuple[Known, ...]]:
    """All known datasets by collection: paper, vtab, fgvc."""
    from smatcli.data.catalogue.tuning import FGVC, VTAB

    return {"paper": PAPER, "vtab": VTAB, "fgvc": FGVC}


def by_name(name: str, among: tuple[Known, ...]) -> Known | None:
    """The dataset whose name, or one of whose other names, is `name`, whatever its case, hyphens and underscores."""
    wanted = plain(name)
    return next((known for known in among if wanted in {plain(other) for other in (known.name, *known.also)}), None)
