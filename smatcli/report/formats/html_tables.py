"""Tables of the HTML report as its template prints them: text, sort keys and classes of cells, without markup."""

import math
import re
from dataclasses import dataclass, field

from smatcli.report.formats.latex import percent
from smatcli.report.formats.run_grids import Grid
from smatcli.report.tables.table import Cell, Row, Table

_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class HtmlCell:
    """A cell: `text`, bold or not, then `after`. `value` is the number to sort by (empty: unknown, None: sort by text)."""

    text: str
    after: str = ""
    bold: bool = False
    value: str | None = None
    wraps: bool = False


@dataclass(frozen=True)
class HtmlRow:
    """Cells from left to right, starting with the label; `average` rows keep their place when the table is sorted."""

    cells: list[HtmlCell]
    average: bool = False


@dataclass(frozen=True)
class HtmlBlock:
    """Rows that are sorted among themselves, under an optional title."""

    title: str
    rows: list[HtmlRow]


@dataclass(frozen=True)
class HtmlTable:
    """A table: `heads` are (text, numeric), `families` are (title, columns spanned). Numeric columns sort in descending order first."""

    id: str
    heads: list[tuple[str, bool]]
    blocks: list[HtmlBlock]
    families: list[tuple[str, int]] = field(default_factory=list)
    caption: str = ""
    notes: list[str] = field(default_factory=list)


def from_table(table: Table, name: str) -> HtmlTable:
    """Convert a table of results; `name` is its id on the page."""
    heads = [(table.corner, False), *((head, _is_numeric(table, i)) for i, head in enumerate(table.heads))]
    blocks = [HtmlBlock(block.title, [_row(row, table.digits) for row in block.rows]) for block in table.blocks]
    return HtmlTable(name, heads, blocks, table.families, table.caption, table.notes)


def from_grid(grid: Grid, name: str) -> HtmlTable:
    """Convert a table of text; its cells wrap, and `name` is its id on the page."""
    rows = [HtmlRow([_text_cell(text, wraps=True) for text in row]) for row in grid.rows]
    return HtmlTable(name, [(head, False) for head in grid.heads], [HtmlBlock("", rows)])


def _is_numeric(table: Table, column: int) -> bool:
    cells = [row.cells[column] for block in table.blocks for row in block.rows]
    return any(cell.text is None or _NUMBER.fullmatch(cell.text.strip()) for cell in cells)


def _row(row: Row, digits: int) -> HtmlRow:
    return HtmlRow([HtmlCell(row.label), *(_cell(cell, digits) for cell in row.cells)], row.average)


def _cell(cell: Cell, digits: int) -> HtmlCell:
    if cell.text is not None:
        return _text_cell(cell.text, bold=cell.bold)
    if not cell.estimate.known:
        return HtmlCell("", value="")
    mean = f"{percent(cell.estimate.mean, digits):{'+' if cell.signed else ''}.{digits}f}"
    half_width = cell.estimate.half_width
    after = f" ± {percent(half_width, digits):.{digits}f}" if math.isfinite(half_width) else ""
    return HtmlCell(mean, after, cell.bold, f"{cell.estimate.mean:.9g}")


def _text_cell(text: str, *, bold: bool = False, wraps: bool = False) -> HtmlCell:
    if _NUMBER.fullmatch(text.strip()):
        return HtmlCell(text, bold=bold, value=f"{float(text.replace(',', '')):.12g}")
    return HtmlCell(text, bold=bold, wraps=wraps)
