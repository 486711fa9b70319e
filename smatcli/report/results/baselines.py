"""The columns that others are compared with, as `--baseline` names them."""

from collections.abc import Iterable, Sequence

from smatcli.errors import UserError, nearest
from smatcli.report.results.groups import Column, ResultGroup


def find_baselines(groups: Sequence[ResultGroup], wanted: Sequence[str], rows: Iterable[str] = ()) -> dict[str, list[Column]]:
    """The baseline columns of each group by its tag. UserError for a name that fits no column of any group; `rows` are other names that
    it could have been."""
    found: dict[str, list[Column]] = {group.tag: [] for group in groups}
    for name in wanted or ["pretrained"]:
        hits = [(group.tag, column) for group in groups for column in [_fitting(group, name)] if column is not None]
        if wanted and not hits:
            known = sorted({*rows, *(n for g in groups for c in g.columns for n in _names_of(c))})
            raise UserError(f"--baseline {name}: no such column; there are {', '.join(known)}{nearest(name, known)}")
        for tag, column in hits:
            if column not in found[tag]:
                found[tag].append(column)
    return found


def _names_of(column: Column) -> list[str]:
    run = column.evaluation.run
    return [column.label, run.name, run.path.name, run.method]


def _fitting(group: ResultGroup, name: str) -> Column | None:
    """The column called `name`: by its label, else by its run, else by its method; without adaptation if there is a choice."""
    for place in range(4):
        hits = [c for c in group.columns if _names_of(c)[place] == name]
        if hits:
            return next((c for c in hits if c.evaluation.adapt == "proto"), hits[0])
    return None
