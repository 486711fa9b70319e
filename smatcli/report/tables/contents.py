"""The list of tables of a report."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from smatcli import plugins
from smatcli.report.results.groups import Column, ResultGroup
from smatcli.report.results.published import Published
from smatcli.report.tables.costs import cost_table, parameter_table
from smatcli.report.tables.ours import gains_table, main_table, pairs_table, sweep_table
from smatcli.report.tables.studies import ablation_table, delta_table, seeds_table, significance_tables, strategies_table
from smatcli.report.tables.table import Table

MOST_PAIRS = 8  # columns; all pairs are listed for at most this many, more would be unreadable


@dataclass(frozen=True)
class TableOptions:
    """Options of all tables: decimals, columns of papers, and whether to subtract these columns from ours."""

    digits: int = 1
    published: list[Published] = field(default_factory=list)
    delta: bool = False


def all_tables(groups: Sequence[ResultGroup], baselines: Mapping[str, list[Column]], options: TableOptions) -> list[Table]:
    """Return the tables of all groups in the order of the page; `baselines` maps the tag of a group to its baseline columns."""
    return [table for group in groups for table in _of_group(group, baselines[group.tag], options) if table is not None]


def _of_group(group: ResultGroup, baselines: Sequence[Column], options: TableOptions) -> Iterable[Table | None]:
    columns, digits = group.columns, options.digits
    if columns:
        beside = [p for p in options.published if any(key.dataset in p.estimates for c in columns for key in c.estimates)]
        yield main_table(group, digits, beside)
        yield delta_table(group, beside, digits) if options.delta else None
    if len(columns) > 1:
        yield from (gains_table(group, baseline, digits) for baseline in baselines)
    if 2 < len(columns) <= MOST_PAIRS:
        yield pairs_table(group, digits)
    if 1 < len(columns) <= MOST_PAIRS:
        yield from significance_tables(group, digits)
    if columns:
        yield strategies_table(group, digits)
        yield ablation_table(group, digits)
        yield seeds_table(group, digits)
        yield parameter_table(group)
        yield cost_table(group)
    yield from (sweep_table(group, sweep, digits) for sweep in group.sweeps)
    yield from plugin_tables(group, digits)


def unmatched(groups: Sequence[ResultGroup], options: TableOptions, tables: Sequence[Table]) -> list[str]:
    """Return lines on published columns whose datasets are not in the report, and on `--delta` if no method matches."""
    ours = {key.dataset for group in groups for column in group.columns for key in column.estimates}
    lines = []
    for paper in dict.fromkeys(p.paper for p in options.published):
        own = [p for p in options.published if p.paper == paper]
        if not any(ours & p.estimates.keys() for p in own):
            theirs = sorted({name for p in own for name in p.estimates})
            lines.append(f"--published {paper}: none of its datasets is in this report ({', '.join(theirs)})")
    if options.delta and not any(table.stem.startswith("delta-") for table in tables):
        theirs = sorted({f"{p.method} + {p.adapt}" for p in options.published if p.method})
        lines.append(f"--delta: no column has the method and adaptation of a published column ({', '.join(theirs) or 'none is given'})")
    return lines


def plugin_tables(group: ResultGroup, digits: int) -> Iterator[Table]:
    """Yield the tables of a group from installed plugins; skip a plugin that fails, with a warning in the log."""
    for name, plugin in plugins.loaded("tables").items():
        try:
            table = plugin.create(group, digits)
            if table is not None and not isinstance(table, Table):
                raise TypeError(f"returned a {type(table).__name__}, not a smatcli.report.tables.Table")
        except Exception as error:  # a plugin may raise anything
            logging.getLogger("smatcli").warning(f"plugin tables.{name} failed on {group.tag}: {type(error).__name__}: {error}; skipped")
            continue
        if table is not None:
            yield table
