"""Writing of a report: read results, build tables and figures, and write them into one folder."""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from smatcli.errors import UserError, nearest
from smatcli.report.figures.contents import more_figures
from smatcli.report.figures.curves import gains, tau_curves, training_curves
from smatcli.report.figures.types import Figure
from smatcli.report.formats import latex, markdown
from smatcli.report.manifest import settle
from smatcli.report.results.baselines import find_baselines
from smatcli.report.results.frame import Frame, read
from smatcli.report.results.groups import Column, ResultGroup, make_groups
from smatcli.report.results.labels import renamed, unique_labels
from smatcli.report.results.published import choose as choose_published
from smatcli.report.results.runs import Run
from smatcli.report.results.seeds import merge_seeds
from smatcli.report.tables.contents import TableOptions, all_tables, unmatched
from smatcli.report.tables.segmentation import segment_tables
from smatcli.report.tables.similarity import similarity_tables
from smatcli.report.tables.table import Table
from smatcli.report.tables.tuning import tuned_labels, tuning_pairs, tuning_tables, unused
from smatcli.safe.files import atomic_write_text

FORMATS = ("files", "html")
MOST_DRAWN = 24  # most series in a figure
Item = TypeVar("Item", Table, Figure)


@dataclass(frozen=True)
class ReportOptions:
    """What a report contains and how it is written.

    `baselines`: columns (label, method or run) that the others are compared with, by default the pre-trained model.
    `names`: run -> label of its columns.
    `digits`: decimals of percentages.
    `title`: heading of the report, which also precedes every caption.
    `published`: papers whose numbers are shown beside ours (see `results.published.choose`).
    `delta`: also subtract the published numbers from ours where method and adaptation are the same.
    `formats`: `files` (LaTeX, Markdown, CSV, PNG, PDF) and `html` (report.html, one self-contained page).
    """

    baselines: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    digits: int = 1
    title: str = ""
    published: Sequence[str] = ()
    delta: bool = False
    formats: Sequence[str] = ("files",)


@dataclass(frozen=True)
class Report:
    """A finished report: `index` is the page to start with, `files` are all files (sorted), `lines` are notes, e.g. on skipped results."""

    index: Path
    files: list[Path]
    lines: list[str]


def report(runs: Sequence[str | Path], out: str | Path, options: ReportOptions | None = None) -> Report:
    """Write a report on all results below `runs` into the folder `out`, which is created if necessary. An earlier report in it is replaced.

    Raises `UserError` if there are no results, or if a name in `options` matches nothing.
    """
    out, options = Path(out), options or ReportOptions()
    _check(out, options)
    papers, missing = choose_published(options.published)
    frame = merge_seeds(read([Path(run) for run in runs]))
    frame.tuned, unused_names = renamed(unique_labels(frame.tuned, frame.lines), options.names)
    frame.segmented, unused_names = renamed(unique_labels(frame.segmented, frame.lines), unused_names)
    groups = make_groups(frame, unused_names)
    table_options = TableOptions(options.digits, unused(papers, frame.tuned), options.delta)
    rows = {item.label for items in (frame.tuned, frame.segmented) for item in items}
    baselines = find_baselines(groups, [name for name in options.baselines if name not in rows], rows)
    tables = [
        *all_tables(groups, baselines, table_options),
        *tuning_tables(frame.tuned, papers, options.digits),
        *tuning_pairs(frame.tuned, options.baselines, options.digits),
        *similarity_tables(frame.tuned),
        *segment_tables(frame.segmented, options.baselines, options.digits),
    ]
    tables = _with_unique_stems([_titled(table, options.title) for table in tables])
    figures = _with_unique_stems(_figures(frame, groups, baselines))
    lines = [*frame.lines, *missing, *unmatched(groups, table_options, tables)]
    written: dict[str, list[Path]] = {}
    if "files" in options.formats:
        shown = [(figure.heading, f"figures/{figure.stem}", figure.caption) for figure in figures]
        index = out / "README.md"
        written["files"] = [index, *_write_tables(out, tables), *_write_figures(out / "figures", figures)]
        atomic_write_text(index, markdown.index(options.title, tables, shown, lines))
    if "html" in options.formats:
        from smatcli.report.formats.html import Content, write_page

        labels = [*_run_labels(frame, groups), *tuned_labels(frame.tuned)]
        content = Content(options.title, tables, figures, frame, groups, labels, lines)
        written["html"] = [write_page(out, content, drawn=out / "figures" if written else None)]
    lines += settle(out, written)
    files = [path for paths in written.values() for path in paths]
    return Report(files[0], sorted(files), lines)


def _check(out: Path, options: ReportOptions) -> None:
    """Raise `UserError` for invalid options before anything is read."""
    if out.is_file() or (out / "recipe.yaml").exists():
        raise UserError(f"{out} is a {'file' if out.is_file() else 'run'}; give the report a folder of its own (--out report)")
    if options.delta and not options.published:
        raise UserError("--delta needs the numbers to subtract: add --published PAPER")
    for name in options.formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: no such format{nearest(name, list(FORMATS))} (known: {', '.join(FORMATS)})")


def _titled(table: Table, title: str) -> Table:
    return replace(table, caption=f"{title}. {table.caption}") if title else table


def _figures(frame: Frame, groups: Sequence[ResultGroup], baselines: Mapping[str, list[Column]]) -> list[Figure]:
    """Return all figures in the order of the report."""
    figures: list[Figure | None] = []
    for group in groups:
        if len(group.columns) > 1 and _drawable(f"gains of {group.tag}", len(group.columns), frame):
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
    return [figure for figure in figures if figure is not None]


def _drawable(what: str, count: int, frame: Frame) -> bool:
    """Return whether a figure of `count` series is readable; if not, add a line to `frame.lines`."""
    if count > MOST_DRAWN:
        frame.lines.append(
            f"no figure of the {what}: {count} columns, more than the {MOST_DRAWN} that are distinguishable; give fewer runs"
        )
    return count <= MOST_DRAWN


def _with_unique_stems(items: Sequence[Item]) -> list[Item]:
    """Give each item a stem that is a valid and unique file name, even on file systems that ignore case."""
    taken: set[str] = set()
    named = []
    for item in items:
        stem = slug(item.stem)
        name = next(n for n in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))) if n.lower() not in taken)
        taken.add(name.lower())
        named.append(replace(item, stem=name))
    return named


def slug(text: str) -> str:
    """Convert `text` to a file name: ASCII letters, digits and `._=-` are kept, anything else becomes a dash."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._=]+", "-", plain).strip("-.")[:100] or "unnamed"


def _run_labels(frame: Frame, groups: Sequence[ResultGroup]) -> list[tuple[str, Run]]:
    """Return each run with a unique label: that of its column without fine-tuning, or its name if it has no such column."""
    columns = {c.evaluation.run.name: c.label for g in groups for c in g.everything if c.evaluation.adapt == "proto"}
    labels = [columns.get(run.name) or run.name for run in frame.runs]
    return [(label if labels.count(label) == 1 else run.name, run) for label, run in zip(labels, frame.runs, strict=True)]


def _write_tables(out: Path, tables: Sequence[Table]) -> list[Path]:
    written = []
    converters = {"tex": latex.document, "tabular.tex": latex.tabular, "csv": markdown.table_csv, "md": markdown.page}
    for table in tables:
        for end, convert in converters.items():
            written.append(out / f"{table.stem}.{end}")
            atomic_write_text(written[-1], convert(table))
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
