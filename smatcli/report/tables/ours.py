"""Tables of our results: accuracies, gains over a baseline, all pairs, sweeps."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from smatcli.report.results import footnotes
from smatcli.report.results.compare import all_paired, average_difference, average_ranks, best, difference
from smatcli.report.results.groups import DOMAINS, Column, Key, ResultGroup
from smatcli.report.results.published import FAMILY, Published
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.statistics import Estimate


def main_table(group: ResultGroup, digits: int = 1, published: Sequence[Published] = ()) -> Table:
    """Tables 1 and 3: datasets x (method + adaptation), grouped by adaptation, with ID and OOD averages and average ranks.

    The best column and its ties are bold. `published` columns come last and are neither bold nor ranked.
    """
    columns = group.columns

    def row(keys: Sequence[Key]) -> list[Cell]:
        return [*marked_best(columns, keys), *(Cell(p.average([key.dataset for key in keys])) for p in published)]

    families: list[tuple[str, int]] = []
    for family in [*(c.family for c in columns), *(FAMILY for _ in published)]:
        count = families.pop()[1] if families and families[-1][0] == family else 0
        families.append((family, count + 1))
    blocks, ranked = rows_by_domain(group, columns, row), _rank_row(group, columns, len(published))
    caption = f"Accuracy (%), mean ± 95% half-width over {group.about}.{_bold_means(columns)}{_empty_cells_note(group, columns)}"
    if ranked:
        blocks.append(Block("", [ranked]))
        caption += " Average rank: over all datasets, 1 is best, ties (as in bold) share their mean rank, as in Meta-Dataset."
    notes = footnotes.notes(group, columns) + [p.note for p in published]
    heads, families = [*(c.label for c in columns), *(p.heading for p in published)], families if len(families) > 1 else []
    stem, heading = f"table-{group.tag}", f"Accuracy ({group.brief})"
    return Table(stem, heading, caption, "Dataset", heads, blocks, families, digits, list(dict.fromkeys(notes)))


def _rank_row(group: ResultGroup, columns: Sequence[Column], empty: int) -> Row | None:
    """Return the average ranks of the complete columns, or None if there are none."""
    ranks = average_ranks(columns, [key for domain in DOMAINS for key in group.keys(domain, columns)])
    if not ranks:
        return None
    lowest = min(ranks.values())
    cells = [Cell(text=f"{ranks[i]:.2f}", bold=ranks[i] == lowest) if i in ranks else Cell(text="") for i in range(len(columns))]
    return Row("Average rank", [*cells, *(Cell(text="") for _ in range(empty))], average=True)


def gains_table(group: ResultGroup, baseline: Column, digits: int = 1) -> Table:
    """Differences of all other columns to `baseline`, by dataset and on average; bold if the interval excludes 0."""
    others = [c for c in group.columns if c is not baseline]

    def row(keys: Sequence[Key]) -> list[Cell]:
        return [signed(average_difference(column, baseline, keys).estimate) for column in others]

    paired = _pairing(all_paired([baseline, *others]))
    caption = (
        f"Difference to {baseline.label} in points of accuracy, mean ± 95% half-width, {group.about}. {paired} Bold: interval excludes 0."
    )
    caption += _empty_cells_note(group, group.columns)
    blocks, heads = rows_by_domain(group, [baseline, *others], row), [c.label for c in others]
    stem, heading = f"gains-{group.tag}-over-{baseline.label}", f"Gains over {baseline.label} ({group.brief})"
    return Table(stem, heading, caption, "Dataset", heads, blocks, digits=digits, notes=footnotes.notes(group, group.columns))


def pairs_table(group: ResultGroup, digits: int = 1) -> Table:
    """All pairs of columns: average ID and OOD differences, and the number of datasets on which the interval excludes 0."""
    domains = [d for d in DOMAINS if group.keys(d)]
    rows = []
    for second, first in combinations(group.columns, 2):
        averages = [signed(average_difference(first, second, group.keys(d)).estimate) for d in domains]
        each = [e for d in domains for k in group.keys(d) if (e := difference(first, second, k).estimate).known]
        better, worse = sum(e.above_zero for e in each), sum(e.below_zero for e in each)
        rows.append(Row(f"{first.label} vs. {second.label}", [*averages, Cell(text=f"{better} / {worse} of {len(each)}")]))
    caption = (
        f"Differences in points of accuracy, averaged over the datasets of a domain, ± 95% half-width; {group.about}. "
        f"{_pairing(all_paired(group.columns))} Bold: interval excludes 0. "
        "Last column: datasets on which the first is better / worse and the interval excludes 0."
    )
    heads = [*(f"{DOMAINS[d]} average" for d in domains), "Better / worse"]
    stem, heading, notes = f"pairs-{group.tag}", f"All pairs ({group.brief})", footnotes.overlaps(group, group.columns)
    return Table(stem, heading, caption, "Difference", heads, [Block("", rows)], digits=digits, notes=notes)


def sweep_table(group: ResultGroup, sweep: Path, digits: int = 1) -> Table:
    """Points of one sweep: target and measured sparsity, and ID and OOD averages with the best in bold."""
    points = sorted(group.sweeps[sweep], key=_sweep_order)
    domains = [d for d in DOMAINS if group.keys(d, points)]
    bold = {d: best(points, group.keys(d, points)) for d in domains}
    rows = []
    for i, column in enumerate(points):
        run = column.evaluation.run
        sparsities = [f"{run.tau:g}" if run.tau is not None else "", f"{run.sparsity:.3f}" if run.sparsity is not None else ""]
        averages = [Cell(column.average(group.keys(d, points)), i in bold[d]) for d in domains]
        rows.append(Row(column.label, [*(Cell(text=t) for t in sparsities), *averages]))
    caption = (
        f"Sweep {sweep.name}: average accuracy (%) ± 95% half-width over {group.about}.{_bold_means(points)} "
        "Sparsity: share of zeros in the experts of the evaluated checkpoint."
    )
    heads = ["Target τ", "Sparsity", *(f"{DOMAINS[d]} average" for d in domains)]
    stem, heading = f"sweep-{sweep.name}-{group.tag}", f"Sweep {sweep.name} ({group.brief})"
    return Table(stem, heading, caption, "Point", heads, [Block("", rows)], digits=digits, notes=footnotes.notes(group, points))


def _sweep_order(column: Column) -> tuple[bool, str, bool, float, str]:
    tau, adapt = column.evaluation.run.tau, column.evaluation.adapt
    return adapt != "proto", adapt, tau is None, tau or 0.0, column.label


def _bold_means(columns: Sequence[Column]) -> str:
    if len(columns) < 2:
        return ""
    paired = "paired by episode" if all_paired(columns) else "paired by episode where both have the same episodes"
    return f" Bold: the best, and those whose difference from it ({paired}) has a 95% interval that includes 0."


def _empty_cells_note(group: ResultGroup, columns: Sequence[Column]) -> str:
    whole = all(key in column.estimates for column in columns for domain in DOMAINS for key in group.keys(domain, columns))
    return "" if whole else " Empty: not evaluated; averages only where every dataset was evaluated."


def _pairing(paired: bool) -> str:
    return "Paired over the same episodes." if paired else "Differences without per-episode results are not paired."


def signed(estimate: Estimate, tested: bool = False) -> Cell:
    """Return a difference as a cell, bold if its interval excludes 0; with `tested`, a difference without an interval is not bold."""
    clear = (estimate.above_zero or estimate.below_zero) and (math.isfinite(estimate.half_width) or not tested)
    return Cell(estimate, bold=clear, signed=True)


def marked_best(columns: Sequence[Column], keys: Sequence[Key]) -> list[Cell]:
    """Return the columns' averages over `keys` as cells, the best and its ties in bold."""
    bold = best(columns, keys)
    return [Cell(column.average(keys), i in bold) for i, column in enumerate(columns)]


def rows_by_domain(group: ResultGroup, columns: Sequence[Column], row: Callable[[Sequence[Key]], list[Cell]]) -> list[Block]:
    """Return one block per domain: one row per dataset, then the average."""
    blocks = []
    for domain, name in DOMAINS.items():
        keys = group.keys(domain, columns)
        if keys:
            rows = [Row(group.row_label(key), row([key])) for key in keys]
            blocks.append(Block(name, [*rows, Row(f"{name} average", row(keys), average=True)]))
    return blocks
