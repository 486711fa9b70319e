"""The tables of a report, free of any output format: accuracies, gains over a baseline, all pairs, sweeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from smatcli.report.compare import all_paired, average_difference, best, difference
from smatcli.report.groups import DOMAINS, Column, Group, Key
from smatcli.report.statistics import UNKNOWN, Estimate


@dataclass(frozen=True)
class Cell:
    """`text` as it is, or an accuracy (share; printed in percent) with its half-width."""

    estimate: Estimate = UNKNOWN
    bold: bool = False
    signed: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Row:
    """A labelled row; `average` rows are set apart."""

    label: str
    cells: list[Cell]
    average: bool = False


@dataclass(frozen=True)
class Block:
    """Rows under a title (empty: none)."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Table:
    """`families` are headings over runs of columns: (title, columns); `stem` names the files, `heading` the index page's section."""

    stem: str
    heading: str
    caption: str
    corner: str
    heads: list[str]
    blocks: list[Block]
    families: list[tuple[str, int]] = field(default_factory=list)
    digits: int = 1


def main_table(group: Group, digits: int = 1) -> Table:
    """Datasets x methods: the in-domain block with its average, then the out-of-domain block with its own; best and ties in bold."""
    columns = group.columns

    def row(keys: Sequence[Key]) -> list[Cell]:
        bold = best(columns, keys)
        return [Cell(column.average(keys), i in bold) for i, column in enumerate(columns)]

    families: list[tuple[str, int]] = []
    for column in columns:
        count = families.pop()[1] if families and families[-1][0] == column.family else 0
        families.append((column.family, count + 1))
    caption = f"Accuracy (%), mean ± 95% half-width over {group.about}.{_bold_means(columns)}{_gaps(group, columns)}"
    heads, families = [c.label for c in columns], families if len(families) > 1 else []
    return Table(
        f"table-{group.tag}", f"Accuracy ({group.brief})", caption, "Dataset", heads, _blocks(group, columns, row), families, digits
    )


def gains_table(group: Group, baseline: Column, digits: int = 1) -> Table:
    """Every other column minus `baseline`, dataset by dataset and on average; bold where the interval excludes 0."""
    others = [c for c in group.columns if c is not baseline]

    def row(keys: Sequence[Key]) -> list[Cell]:
        return [_signed(average_difference(column, baseline, keys).estimate) for column in others]

    paired = _pairing(all_paired([baseline, *others]))
    caption = f"Difference to {baseline.label} in points of accuracy, mean ± 95% half-width, {group.about}. {paired} Bold: 0 lies outside."
    caption += _gaps(group, group.columns)
    blocks, heads = _blocks(group, [baseline, *others], row), [c.label for c in others]
    stem, heading = f"gains-{group.tag}-over-{baseline.label}", f"Gains over {baseline.label} ({group.brief})"
    return Table(stem, heading, caption, "Dataset", heads, blocks, digits=digits)


def pairs_table(group: Group, digits: int = 1) -> Table:
    """Every pair of columns: average differences in and out of domain, and the datasets on which one is better for sure."""
    domains = [d for d in DOMAINS if group.keys(d)]
    rows = []
    for second, first in combinations(group.columns, 2):
        averages = [_signed(average_difference(first, second, group.keys(d)).estimate) for d in domains]
        each = [e for d in domains for k in group.keys(d) if (e := difference(first, second, k).estimate).known]
        better, worse = sum(e.above_zero for e in each), sum(e.below_zero for e in each)
        rows.append(Row(f"{first.label} vs. {second.label}", [*averages, Cell(text=f"{better} / {worse} of {len(each)}")]))
    caption = (
        f"Differences in points of accuracy, averaged over the datasets of a domain, ± 95% half-width; {group.about}. "
        f"{_pairing(all_paired(group.columns))} Bold: 0 lies outside. "
        "Last column: datasets on which the first is better / worse with 0 outside the interval."
    )
    heads = [*(f"{DOMAINS[d]} average" for d in domains), "Better / worse"]
    return Table(f"pairs-{group.tag}", f"All pairs ({group.brief})", caption, "Difference", heads, [Block("", rows)], digits=digits)


def sweep_table(group: Group, sweep: Path, digits: int = 1) -> Table:
    """Points of one sweep: target and measured sparsity, averages in and out of domain; the best of each in bold."""
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
        "Sparsity: share of zeros in the experts at the checkpoint that was evaluated."
    )
    heads = ["Target τ", "Sparsity", *(f"{DOMAINS[d]} average" for d in domains)]
    stem, heading = f"sweep-{sweep.name}-{group.tag}", f"Sweep {sweep.name} ({group.brief})"
    return Table(stem, heading, caption, "Point", heads, [Block("", rows)], digits=digits)


def _sweep_order(column: Column) -> tuple[bool, str, bool, float, str]:
    tau, adapt = column.evaluation.run.tau, column.evaluation.adapt
    return adapt != "proto", adapt, tau is None, tau or 0.0, column.label


def _bold_means(columns: Sequence[Column]) -> str:
    if len(columns) < 2:
        return ""
    paired = "paired by episode" if all_paired(columns) else "paired by episode where both recorded the same episodes"
    return f" Bold: the best, and those whose difference from it ({paired}) has 0 in its 95% interval."


def _gaps(group: Group, columns: Sequence[Column]) -> str:
    whole = all(key in column.estimates for column in columns for domain in DOMAINS for key in group.keys(domain, columns))
    return "" if whole else " --: not evaluated; averages only where every dataset is there."


def _pairing(paired: bool) -> str:
    return "Paired: taken over the same episodes." if paired else "Where per-episode results are missing, differences are not paired."


def _signed(estimate: Estimate) -> Cell:
    return Cell(estimate, bold=estimate.above_zero or estimate.below_zero, signed=True)


def _blocks(group: Group, columns: Sequence[Column], row: Callable[[Sequence[Key]], list[Cell]]) -> list[Block]:
    """A block a domain: a row a dataset, then the average."""
    blocks = []
    for domain, name in DOMAINS.items():
        keys = group.keys(domain, columns)
        if keys:
            rows = [Row(group.row_label(key), row([key])) for key in keys]
            blocks.append(Block(name, [*rows, Row(f"{name} average", row(keys), average=True)]))
    return blocks
