"""Makes a report: reads results, builds tables and figures, writes them into one folder."""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smatcli.errors import UserError, nearest
from smatcli.report.figures.contents import more_figures
from smatcli.report.figures.curves import gains, tau_curves, training_curves
from smatcli.report.figures.types import Figure
from smatcli.report.formats import latex, markdown
from smatcli.report.manifest import settle
from smatcli.report.results.baselines import find_baselines
from smatcli.report.results.frame import Frame, read
from smatcli.report.results.groups import Column, Group, make_groups
from smatcli.report.results.labels import renamed, told_apart
from smatcli.report.results.published import Published
from smatcli.report.results.published import choose as choose_published
from smatcli.report.results.runs import Run
from smatcli.report.results.seeds import merge_seeds
from smatcli.report.tables.contents import Wishes, all_tables, unmatched
from smatcli.report.tables.segmentation import segment_tables
from smatcli.report.tables.table import Table
from smatcli.report.tables.tuning import tuned_labels, tuning_pairs, tuning_tables, unused
from smatcli.report.tables.tuning_pairs import similarity_table
from smatcli.safe.files import atomic_write_text

FORMATS = ("files", "html")
MOST_DRAWN = 24  # series of one figure


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
    published: Sequence[str] = (),
    delta: bool = False,
    formats: Sequence[str] = ("files",),
) -> Report:
    """Report on all results below `runs` in the folder `out`, which is made; what an earlier report made there is replaced or removed.

    `baselines`: columns (label, method or run) that the others are compared with, default the pre-trained model;
    `names`: run -> column label; `digits`: after the point of percentages; `published`: papers whose numbers stand beside ours (see
    `published.choose`); `delta`: subtract them where they are the same method; `formats`: `files` (LaTeX, Markdown, CSV, PNG, PDF) and
    `html` (report.html, one self-contained page).
    Raises `UserError` when there are no results, or a name fits nothing.
    """
    out = Path(out)
    if out.is_file() or (out / "recipe.yaml").exists():
        raise UserError(f"{out} is a {'file' if out.is_file() else 'run'}; give the report a folder of its own (--out report)")
    if delta and not published:
        raise UserError("--delta needs the numbers to subtract: add --published PAPER")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: no such format{nearest(name, list(FORMATS))} (known: {', '.join(FORMATS)})")
    papers, missing = choose_published(published)
    frame = merge_seeds(read([Path(run) for run in runs]))
    frame.tuned, left = renamed(told_apart(frame.tuned, frame.lines), names or {})
    frame.segmented, left = renamed(told_apart(frame.segmented, frame.lines), left)
    groups = make_groups(frame, left)
    rows = {*(one.label for one in frame.tuned), *(one.label for one in frame.segmented)}
    wishes = Wishes(digits, unused(papers, frame.tuned), delta)
    compared = find_baselines(groups, [name for name in baselines if name not in rows], rows)
    tables, figures = _contents(frame, groups, compared, wishes, title, papers, baselines)
    lines = [
        *frame.lines,
        *missing,
        *unmatched(groups, wishes, tables),
        *dict.fromkeys(problem for e in frame.evaluations for problem in e.problems),
    ]
    made: dict[str, list[Path]] = {}
    if "files" in formats:
        shown = [(figure.heading, f"figures/{figure.stem}", figure.caption) for figure in figures]
        index = out / "README.md"
        made["files"] = [index, *_write_tables(out, tables), *_write_figures(out / "figures", figures)]
        atomic_write_text(index, markdown.index(title, tables, shown, lines))
    if "html" in formats:
        from smatcli.report.formats.html import Content, write_page

        labels = [*_run_labels(frame, groups), *tuned_labels(frame.tuned)]
        content = Content(title, tables, figures, frame, groups, labels, lines)
        made["html"] = [write_page(out, content, drawn=out / "figures" if made else None)]
    lines += settle(out, made)
    files = [path for own in made.values() for path in own]
    return Report(files[0], sorted(files), lines)


def _contents(
    frame: Frame,
    groups: Sequence[Group],
    baselines: Mapping[str, list[Column]],
    wishes: Wishes,
    title: str,
    papers: Sequence[Published],
    rows: Sequence[str],
) -> tuple[list[Table], list[Figure]]:
    tables = all_tables(groups, baselines, wishes)
    figures: list[Figure | None] = []
    for group in groups:
        if _drawable(f"gains of {group.tag}", len(group.columns), frame) and len(group.columns) > 1:
            figures += [gains(group, baseline) for baseline in baselines[group.tag]]
        figures += [tau_curves(group, sweep) for sweep in group.sweeps]
    labels = _run_labels(frame, groups)
    ordinary = [(label, run) for label, run in labels if run.sweep is None]
    if _drawable("training curves", sum(bool(run.valid) for _, run in ordinary), frame):
        figures.append(training_curves("training", "Validation accuracy during meta-training", ordinary))
    for sweep in dict.fromkeys(run.sweep for _, run in labels if run.sweep is not None):
        points = [(run.path.name, run) for _, run in labels if run.sweep == sweep]
        figures.append(training_curves(f"training-{sweep.name}", f"Validation accuracy during meta-training: {sweep.name}", points))
    figures += more_figures(frame, groups, baselines, [*labels, *tuned_labels(frame.tuned)])
    tables += [*tuning_tables(frame.tuned, papers, wishes.digits), *tuning_pairs(frame.tuned, rows, wishes.digits)]
    tables += [table for table in [similarity_table(frame.tuned)] if table is not None]
    tables += segment_tables(frame.segmented, rows, wishes.digits)
    if title:
        tables = [replace(table, caption=f"{title}. {table.caption}") for table in tables]
    return _own_stems(tables), _own_stems([figure for figure in figures if figure is not None])


def _drawable(what: str, count: int, frame: Frame) -> bool:
    """Can a figure of so many series be read? If not, `frame.lines` say so."""
    if count > MOST_DRAWN:
        frame.lines.append(f"no figure of the {what}: {count} columns, more than the {MOST_DRAWN} that can be told apart; give fewer runs")
    return count <= MOST_DRAWN


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


def _write_figures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    if not figures:
        return []
    from smatcli.report.figures.draw import draw

    written = []
    for figure in figures:
        draw(figure, folder / figure.stem)
        atomic_write_text(folder / f"{figure.stem}.csv", figure.csv())
        written += [folder / f"{figure.stem}.{end}" for end in ("png", "pdf", "csv")]
    return written
