"""The report as one self-contained HTML page, made from the template, style and script beside this file.

It loads nothing from elsewhere.
"""

import base64
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jinja2
import yaml

from smatcli.report.figures import style
from smatcli.report.figures.types import Figure
from smatcli.report.formats.html_tables import HtmlTable, from_grid, from_table
from smatcli.report.formats.run_grids import differences, environment, protocols
from smatcli.report.results.frame import Frame
from smatcli.report.results.groups import DOMAINS, ResultGroup
from smatcli.report.results.runs import Run
from smatcli.report.tables.table import Table
from smatcli.safe.files import atomic_write_text

NAME = "report.html"
MOST_COMPARED = 24  # runs whose recipes are compared
PAGE_WIDTH = 1000  # CSS pixels of a figure that spans two columns
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Content:
    """The content of a page: `labels` maps runs to their labels, `lines` are notes on what was skipped or is noteworthy."""

    title: str
    tables: Sequence[Table]
    figures: Sequence[Figure]
    frame: Frame
    groups: Sequence[ResultGroup]
    labels: Sequence[tuple[str, Run]]
    lines: Sequence[str]


@dataclass(frozen=True)
class TableSection:
    """A table with its heading; it is folded unless it is `inline`."""

    id: str
    heading: str
    table: HtmlTable
    inline: bool


@dataclass(frozen=True)
class FigureSection:
    """A figure with its heading and caption; `address` is a data: URL of a PNG, shown `width` CSS pixels wide."""

    id: str
    heading: str
    caption: str
    address: str
    width: int


@dataclass(frozen=True)
class BestColumn:
    """The best column of a group of evaluations on one domain."""

    domain: str
    label: str
    accuracy: str
    datasets: str


@dataclass(frozen=True)
class GroupSummary:
    """The best columns of a group of evaluations."""

    name: str
    domains: list[BestColumn]


@dataclass(frozen=True)
class RecipeText:
    """The recipe of a run as lines of YAML."""

    label: str
    path: str
    lines: list[str]


@dataclass(frozen=True)
class Page:
    """The values that the template prints and escapes."""

    title: str
    counts: str
    best: list[GroupSummary]
    warnings: list[str]
    tables: list[TableSection]
    figures: list[FigureSection]
    runs: int
    compared: int
    differences: HtmlTable | None
    protocols: HtmlTable
    environment: HtmlTable
    recipes: list[RecipeText]


def write_page(out: Path, content: Content, drawn: Path | None = None) -> Path:
    """Write `out`/report.html; `drawn` is the folder of the figures' PNG files (None: draw them for this page)."""
    with ExitStack() as stack:
        folder = drawn
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            _draw(content.figures, folder)
        pictures = {figure.stem: (folder / f"{figure.stem}.png").read_bytes() for figure in content.figures}
    atomic_write_text(out / NAME, render(make_page(content, pictures)))
    return out / NAME


def _draw(figures: Sequence[Figure], folder: Path) -> None:
    if figures:
        from smatcli.report.figures.axes import only_png
        from smatcli.report.figures.draw import draw

        with only_png():
            for figure in figures:
                draw(figure, folder / figure.stem)


def _figure(figure: Figure, png: bytes) -> FigureSection:
    """Embed a figure at a width that gives all figures the same font size."""
    pixels = int.from_bytes(png[16:20], "big")  # the width in the header of a PNG
    width = round(pixels * PAGE_WIDTH / (style.TWO_COLUMNS * style.RC["savefig.dpi"]))
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return FigureSection(f"figure-{figure.stem}", figure.heading, figure.caption, address, width)


def render(page: Page) -> str:
    """Return the page as HTML. Raises `jinja2.UndefinedError` where the template uses an undefined name."""
    style, script = ((FOLDER / name).read_text("utf-8") for name in ("report.css", "report.js"))
    return templates().get_template("report.html.j2").render(page=page, style=style, script=script) + "\n"


@cache
def templates() -> jinja2.Environment:
    """Return the Jinja environment: every value is escaped and printed on one line, undefined names are errors."""
    loader = jinja2.FileSystemLoader(FOLDER)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, finalize=_one_line)


def _one_line(value: object) -> object:
    """Replace control characters, line breaks and lone surrogates in `value` with spaces, unless it is markup."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") else c for c in value)


def make_page(content: Content, pictures: Mapping[str, bytes]) -> Page:
    """Collect the values of the page; `pictures` maps the stems of figures to their PNG files."""
    labels, compared = content.labels, content.labels[:MOST_COMPARED]
    different = differences(compared)
    warnings = dict.fromkeys([*(note for table in content.tables for note in table.notes), *content.lines])
    return Page(
        title=content.title or "Report",
        counts=_counts(content.frame),
        best=[GroupSummary(group.brief, best) for group in content.groups if (best := _best(group))],
        warnings=list(warnings),
        tables=[TableSection(f"table-{t.stem}", t.heading, from_table(t, f"data-{t.stem}"), t.inline) for t in content.tables],
        figures=[_figure(figure, pictures[figure.stem]) for figure in content.figures],
        runs=len(labels),
        compared=len(compared),
        differences=from_grid(different, "grid-differences") if different.rows else None,
        protocols=from_grid(protocols(content.frame), "grid-protocols"),
        environment=from_grid(environment(labels), "grid-environment"),
        recipes=[RecipeText(label, str(run.path), _yaml_lines(run)) for label, run in labels if run.recipe],
    )


def _yaml_lines(run: Run) -> list[str]:
    return yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True).splitlines()


def _counts(frame: Frame) -> str:
    """Return the numbers of runs, evaluations and datasets of the report as text."""
    datasets = {result.dataset for e in frame.evaluations for result in e.results}
    counts = [(len(frame.runs), "run"), (len(frame.evaluations), "evaluation"), (len(datasets), "dataset")]
    return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)


def _best(group: ResultGroup) -> list[BestColumn]:
    """Return the column with the highest average in each domain."""
    best = []
    for domain, name in DOMAINS.items():
        keys = group.keys(domain, group.everything)
        averages = [(column.average(keys).mean, column) for column in group.everything if keys and column.average(keys).known]
        if averages:
            mean, column = max(averages, key=lambda pair: pair[0])
            count = f"{len(keys)} dataset{'' if len(keys) == 1 else 's'}"
            best.append(BestColumn(name.lower(), column.label, f"{100 * mean:.1f}%", count))
    return best
