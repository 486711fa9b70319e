"""Baselines: the columns that others are compared with, named by `--baseline`."""

from collections.abc import Iterable, Sequence

from smatcli.errors import UserError, nearest
from smatcli.report.results.groups import Column, ResultGroup


def find_baselines(groups: Sequence[ResultGroup], wanted: Sequence[str], rows: Iterable[str] = ()) -> dict[str, list[Column]]:
    """Return the baseline columns of each group, by its tag.

    Raises UserError for a name that matches no column of any group and is not in `rows` (the names of other tables' rows).
    """
    baselines: dict[str, list[Column]] = {group.tag: [] for group in groups}
    for name in wanted or ["pretrained"]:
        hits = [(group.tag, column) for group in groups for column in [_find_column(group, name)] if column is not None]
        if wanted and not hits:
            names = sorted({*rows, *(n for g in groups for c in g.columns for n in _names_of(c))})
            raise UserError(f"--baseline {name}: no such column; there are {', '.join(names)}{nearest(name, names)}")
        for tag, column in hits:
            if column not in baselines[tag]:
                baselines[tag].append(column)
    return baselines


def _names_of(column: Column) -> list[str]:
    run = column.evaluation.run
    return [column.label, run.name, run.path.name, run.method]


def _find_column(group: ResultGroup, name: str) -> Column | None:
    """Return the column whose label, run or method (in this order) is `name`; of several, one without fine-tuning."""
    for place in range(4):
        hits = [c for c in group.columns if _names_of(c)[place] == name]
        if hits:
            return next((c for c in hits if c.evaluation.adapt == "proto"), hits[0])
    return None
