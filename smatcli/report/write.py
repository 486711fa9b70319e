"""Makes a report: reads results, builds tables and figures, writes them into one folder."""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smatcli.errors import UserError, nearest
from smatcli.files import atomic_write_text
from smatcli.report import latex, markdown
from smatcli.report.curves import Curves, Gains, gains, tau_curves, training_curves
from smatcli.report.frame import Frame, read
from smatcli.report.groups import Column, Group, make_groups
from smatcli.report.runs import Run
from smatcli.report.tables import Table, gains_table, main_table, pairs_table, sweep_table

MOST_PAIRS = 8  # columns; more would make a table of pairs that nobody reads


@dataclass(frozen=True)
class Report:
    """What was made: `index` the first page, `files` everything (sorted), `lines` what the user should know."""

    index: Path
    files: list[Path]
    lines: list[str]


def report(
    runs: Sequence[str | Path],
    out: str | Path,
    baselines: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    digits: int = 1,
    title: str = "",
) -> Report:
    """Report on all results below `runs` in the folder `out`, which is made; files of an earlier report there are replaced.

    `baselines`: columns (label, method or run) that the others are compared with, default the pre-trained model;
    `names`: run -> column label; `digits`: after the point of percentages.
    Raises `UserError` when there are no results, or a name fits nothing.
    """
    out = Path(out)
    if out.is_file() or (out / "recipe.yaml").exists():
        raise UserError(f"{out} is a {'file' if out.is_file() else 'run'}; give the report a folder of its own (--out report)")
    frame = read([Path(run) for run in runs])
    groups = make_groups(frame, names or {})
    tables, figures = _contents(frame, groups, find_baselines(groups, baselines), digits, title)
    files = [*_write_tables(out, tables), *_write_figures(out / "figures", figures)]
    lines = [*frame.lines, *dict.fromkeys(problem for e in frame.evaluations for problem in e.problems)]
    index = out / "README.md"
    shown = [(figure.heading, f"figures/{figure.stem}", figure.caption) for figure in figures]
    atomic_write_text(index, markdown.index(title, tables, shown, lines))
    return Report(index, sorted([index, *files]), lines)


def find_baselines(groups: Sequence[Group], wanted: Sequence[str]) -> dict[str, list[Column]]:
    """The baseline columns of each group by its tag. UserError for a name that fits no column of any group."""
    found: dict[str, list[Column]] = {group.tag: [] for group in groups}
    for name in wanted or ["pretrained"]:
        hits = [(group.tag, column) for group in groups for column in [_fitting(group, name)] if column is not None]
        if wanted and not hits:
            known = sorted({n for g in groups for c in g.columns for n in _names_of(c)})
            raise UserError(f"--baseline {name}: no such column; there are {', '.join(known)}{nearest(name, known)}")
        for tag, column in hits:
            if column not in found[tag]:
                found[tag].append(column)
    return found


def _names_of(column: Column) -> list[str]:
    run = column.evaluation.run
    return [column.label, run.name, run.path.name, run.method]


def _fitting(group: Group, name: str) -> Column | None:
    """The column called `name`: by its label, else by its run, else by its method; without adaptation if there is a choice."""
    for place in range(4):
        hits = [c for c in group.columns if _names_of(c)[place] == name]
        if hits:
            return next((c for c in hits if c.evaluation.adapt == "proto"), hits[0])
    return None


def _contents(
    frame: Frame, groups: Sequence[Group], baselines: Mapping[str, list[Column]], digits: int, title: str
) -> tuple[list[Table], list[Curves | Gains]]:
    tables: list[Table] = []
    figures: list[Curves | Gains | None] = []
    for group in groups:
        if group.columns:
            tables.append(main_table(group, digits))
        for baseline in baselines[group.tag]:
            if len(group.columns) > 1:
                tables.append(gains_table(group, baseline, digits))
                figures.append(gains(group, baseline))
        if 2 < len(group.columns) <= MOST_PAIRS:
            tables.append(pairs_table(group, digits))
        for sweep in group.sweeps:
            tables.append(sweep_table(group, sweep, digits))
            figures.append(tau_curves(group, sweep))
    labels = _run_labels(frame, groups)
    ordinary = [(label, run) for label, run in labels if run.sweep is None]
    figures.append(training_curves("training", "Validation accuracy during meta-training", ordinary))
    for sweep in dict.fromkeys(run.sweep for _, run in labels if run.sweep is not None):
        points = [(run.path.name, run) for _, run in labels if run.sweep == sweep]
        figures.append(training_curves(f"training-{sweep.name}", f"Validation accuracy during meta-training: {sweep.name}", points))
    if title:
        tables = [replace(table, caption=f"{title}. {table.caption}") for table in tables]
    return _own_stems(tables), _own_stems([figure for figure in figures if figure is not None])


def _own_stems(items: Sequence[Any]) -> list[Any]:
    """The items with stems that are fit for file names, each its own, also where a file system does not tell cases apart."""
    taken: set[str] = set()
    named = []
    for item in items:
        stem = slug(item.stem)
        name = next(n for n in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))) if n.lower() not in taken)
        taken.add(name.lower())
        named.append(replace(item, stem=name))
    return named


def slug(text: str) -> str:
    """`text` as a file name: ASCII letters, digits and `._=-` stay, anything else becomes one dash."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._=]+", "-", plain).strip("-.")[:100] or "unnamed"


def _run_labels(frame: Frame, groups: Sequence[Group]) -> list[tuple[str, Run]]:
    """Every run with a label of its own: that of its columns without an adaptation, else its method or name."""
    columns = {c.evaluation.run.name: c.label for g in groups for c in g.everything if c.evaluation.adapt == "proto"}
    labels = [columns.get(run.name) or run.name for run in frame.runs]
    return [(label if labels.count(label) == 1 else run.name, run) for label, run in zip(labels, frame.runs, strict=True)]


def _write_tables(out: Path, tables: Sequence[Table]) -> list[Path]:
    written = []
    for table in tables:
        makers = {"tex": latex.document, "tabular.tex": latex.tabular, "csv": markdown.table_csv, "md": markdown.page}
        for end, make in makers.items():
            written.append(out / f"{table.stem}.{end}")
            atomic_write_text(written[-1], make(table))
    return written


def _write_figures(folder: Path, figures: Sequence[Curves | Gains]) -> list[Path]:
    if not figures:
        return []
    from smatcli.report.figures import draw_curves, draw_gains

    written = []
    for figure in figures:
        if isinstance(figure, Curves):
            draw_curves(figure, folder / figure.stem)
        else:
            draw_gains(figure, folder / figure.stem)
        atomic_write_text(folder / f"{figure.stem}.csv", figure.csv())
        written += [folder / f"{figure.stem}.{end}" for end in ("png", "pdf", "csv")]
    return written
