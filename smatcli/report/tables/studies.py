"""Further tables: ablations (Table 2), fine-tuning strategies (Table 4), seeds, significance, differences to published numbers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from smatcli.report.results import footnotes
from smatcli.report.results.compare import average_difference, compared
from smatcli.report.results.groups import DOMAINS, METHOD_LABELS, Column, Key, ResultGroup
from smatcli.report.results.published import Published
from smatcli.report.results.runs import Run, section
from smatcli.report.results.seeds import seed_means
from smatcli.report.results.significance import RESAMPLES, Outcome, holm
from smatcli.report.tables.ours import marked_best, rows_by_domain, signed
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.statistics import UNKNOWN, Estimate, across_seeds, unpaired_difference

CHECK = "✓"
# Parts of SMAT that Table 2 ablates, each with a test of whether a method has it.
PARTS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "Support/query split": lambda m: m.get("query_split", True) is not False,
    "Interpolated experts": lambda m: m.get("name") == "smat" and m.get("interpolated", True) is not False,
    "Learned sparsity": lambda m: m.get("name") == "smat" and section(m, "masks").get("kind", "learned") == "learned",
    "All layers": lambda m: m.get("name") != "mlp_experts",
    "Several experts": lambda m: (m.get("experts") or 1) > 1,
    "Dense teacher": lambda m: bool(section(m, "teacher").get("steps", 1)) and section(m, "teacher").get("weight", 0.25) != 0,
}


def ablation_table(group: ResultGroup, digits: int = 1) -> Table | None:
    """Table 2: the parts of each SMAT run, and its averages; None if no two runs differ in a part."""
    columns = [
        c for c in group.columns if c.evaluation.adapt == "proto" and _method(c.evaluation.run).get("name") in ("smat", "mlp_experts")
    ]
    has = {c.label: {part: read(_method(c.evaluation.run)) for part, read in PARTS.items()} for c in columns}
    shown = [part for part in PARTS if len({own[part] for own in has.values()}) > 1]
    if not shown:
        return None
    columns.sort(key=lambda c: -sum(has[c.label].values()))
    domains = [d for d in DOMAINS if group.keys(d, columns)]
    averages = {d: marked_best(columns, group.keys(d, columns)) for d in domains}
    rows = [
        Row(c.label, [*(Cell(text=CHECK if has[c.label][p] else "") for p in shown), *(averages[d][i] for d in domains)])
        for i, c in enumerate(columns)
    ]
    caption = f"Ablation: parts of each run ({CHECK}), and average accuracy (%) ± 95% half-width over {group.about}, without fine-tuning."
    heads = [*shown, *(f"{DOMAINS[d]} average" for d in domains)]
    notes = footnotes.notes(group, columns)
    return Table(
        f"ablation-{group.tag}", f"Ablation ({group.brief})", caption, "Method", heads, [Block("", rows)], digits=digits, notes=notes
    )


def _method(run: Run) -> dict[str, Any]:
    return section(run.recipe, "method")


def strategies_table(group: ResultGroup, digits: int = 1) -> Table | None:
    """Table 4: the adaptations of each run, gains over no fine-tuning, and how rates were chosen; None if no run has two adaptations."""
    runs: dict[str, list[Column]] = {}
    for column in group.columns:
        runs.setdefault(column.evaluation.run.name, []).append(column)
    blocks = []
    domains = [d for d in DOMAINS if group.keys(d)]
    for name, columns in runs.items():
        if len(columns) < 2:
            continue
        plain = next((c for c in columns if c.evaluation.adapt == "proto"), None)
        averages = {d: marked_best(columns, group.keys(d)) for d in domains}
        rows = []
        for i, column in enumerate(columns):
            cells = [averages[d][i] for d in domains]
            for d in domains:
                against = plain is not None and column is not plain
                cells.append(signed(average_difference(column, plain, group.keys(d)).estimate) if against and plain else Cell())
            searches = sorted({r.search for r in column.evaluation.results if r.search})
            rows.append(Row(column.evaluation.adapt, [*cells, Cell(text=", ".join(searches))]))
        method = METHOD_LABELS.get(columns[0].evaluation.run.method, "")
        blocks.append(Block(f"{method} ({name})" if method and method != name else name, rows))
    if not blocks:
        return None
    caption = (
        f"Fine-tuning strategies: average accuracy (%) and gain over no fine-tuning (points), ± 95% half-width over {group.about}. "
        "Bold: the best of a run and its ties, and gains whose interval excludes 0."
    )
    heads = [f"{DOMAINS[d]} average" for d in domains] + [f"{d} gain" for d in domains] + ["Rate chosen on"]
    stem, heading, notes = f"strategies-{group.tag}", f"Fine-tuning strategies ({group.brief})", footnotes.notes(group, group.columns)
    return Table(stem, heading, caption, "Adaptation", heads, blocks, digits=digits, notes=notes)


def seeds_table(group: ResultGroup, digits: int = 1) -> Table | None:
    """Means over seeds with two kinds of intervals; None if all columns are single trainings."""
    columns = [c for c in group.columns if c.evaluation.members]
    if not columns:
        return None

    def row(keys: Sequence[Key]) -> list[Cell]:
        cells = []
        for column in columns:
            means = seed_means(column.evaluation, [(k.dataset, k.domain) for k in keys])
            cells += [Cell(column.average(keys)), Cell(across_seeds(means) if means else UNKNOWN)]
        return cells

    heads = [text for c in columns for text in ("± episodes", f"± {len(c.evaluation.members)} seeds")]
    caption = (
        f"Mean accuracy (%) over seeds, {group.about}, with two 95% half-widths: over episodes (same models, other episodes; 1.96 "
        "standard errors) and over seeds (same episodes, other trainings; Student's t)."
    )
    families = [(c.label, 2) for c in columns]
    stem, heading = f"seeds-{group.tag}", f"Means over seeds ({group.brief})"
    return Table(
        stem, heading, caption, "Dataset", heads, rows_by_domain(group, columns, row), families, digits, footnotes.overlaps(group, columns)
    )


def significance_tables(group: ResultGroup, digits: int = 1) -> list[Table]:
    """Paired bootstrap and Wilcoxon's test of all pairs with the same episodes: for the averages, and by dataset (not inline)."""
    pairs = [(first, second) for second, first in combinations(group.columns, 2)]
    blocks, details = [], []
    for domain, title in DOMAINS.items():
        keys = group.keys(domain)
        places, single, whole = compared(pairs, keys)
        chosen = [pairs[i] for i in places]
        if chosen:
            blocks.append(Block(f"{title} average", _tested(chosen, keys, whole)))
            details += [Block(group.row_label(key), _tested(chosen, [key], single[key])) for key in keys]
    if not blocks:
        return []
    caption = (
        f"Paired comparisons over the same {group.about}: difference in points of accuracy ± 95% half-width, its bootstrap interval "
        f"({RESAMPLES} resamples of episodes), two-sided p-values of the bootstrap and of Wilcoxon's signed-rank test, the latter also "
        "adjusted for the number of rows of a block (Holm). They apply to these trained models, not to other seeds."
    )
    heads = ["Difference", "Bootstrap 95%", "p (bootstrap)", "p (Wilcoxon)", "p (Wilcoxon, Holm)"]
    stem, heading, notes = f"significance-{group.tag}", f"Significance ({group.brief})", footnotes.overlaps(group, group.columns)
    more = f"Significance by dataset ({group.brief})"
    return [
        Table(stem, heading, caption, "Pair", heads, blocks, digits=digits, notes=notes),
        Table(f"{stem}-datasets", more, caption, "Pair", heads, details, digits=digits, notes=notes, inline=False),
    ]


def _tested(pairs: Sequence[tuple[Column, Column]], keys: Sequence[Key], outcomes: Sequence[Outcome]) -> list[Row]:
    adjusted = holm([o.p_wilcoxon for o in outcomes])
    rows = []
    for (first, second), outcome, p in zip(pairs, outcomes, adjusted, strict=True):
        interval = f"{100 * outcome.low:+.2f} to {100 * outcome.high:+.2f}"
        least = "≤ " if outcome.p_bootstrap <= 1 / RESAMPLES else ""
        texts = [interval, least + _p(outcome.p_bootstrap), _p(outcome.p_wilcoxon), _p(p)]
        cells = [signed(average_difference(first, second, keys).estimate), *(Cell(text=t) for t in texts)]
        rows.append(Row(f"{first.label} vs. {second.label}", cells))
    return rows


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def delta_table(group: ResultGroup, published: Sequence[Published], digits: int = 1) -> Table | None:
    """Our numbers minus published ones, for columns with the same method and adaptation; None if there are none."""
    pairs = [
        (c, p)
        for c in group.columns
        for p in published
        if (p.method, p.adapt) == (c.evaluation.run.method, c.evaluation.adapt.split("-")[0]) and _shared(group, c, p)
    ]
    if not pairs:
        return None

    def row(keys: Sequence[Key]) -> list[Cell]:
        cells = []
        for column, paper in pairs:
            theirs: Estimate = paper.average([key.dataset for key in keys])
            ours = column.average(keys)
            cells.append(signed(unpaired_difference(ours, theirs) if ours.known and theirs.known else UNKNOWN, tested=True))
        return cells

    caption = (
        f"Ours minus published, in points of accuracy; ours over {group.about}. Half-widths combine both intervals if the paper has one; "
        "bold: interval excludes 0. The papers used other episodes."
    )
    heads = [f"{c.label} − {p.heading}" for c, p in pairs]
    notes = list(dict.fromkeys([*footnotes.overlaps(group, [c for c, _ in pairs]), *(p.note for _, p in pairs)]))
    blocks = rows_by_domain(group, [c for c, _ in pairs], row)
    return Table(
        f"delta-{group.tag}", f"Ours minus published ({group.brief})", caption, "Dataset", heads, blocks, digits=digits, notes=notes
    )


def _shared(group: ResultGroup, column: Column, paper: Published) -> bool:
    return any(key.dataset in paper.estimates for key in column.estimates)
