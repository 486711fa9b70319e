"""Tables as GitHub Markdown and as CSV, and the index page of a report."""

import math
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import quote

from smatcli.report.formats.latex import percent
from smatcli.report.tables.table import Cell, Row, Table
from smatcli.safe.text import csv_number, write_csv

_SPECIAL = re.compile(r"[\\`*\[\]<>&|~#$!]")
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escape(text: str) -> str:
    """Escape markup, HTML, pipes and line breaks in `text`, for Markdown and its table cells."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    plain = _SPECIAL.sub(lambda m: {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(m.group(), "\\" + m.group()), plain)
    return _UNDERSCORE.sub(r"\\_", plain).replace("://", ":&#47;/")


def cell_text(cell: Cell, digits: int) -> str:
    """Return a cell such as `**57.9** ± 0.5`, in percent; empty if unknown."""
    if cell.text is not None:
        text = escape(cell.text)
        return f"**{text}**" if text and cell.bold else text
    if not cell.estimate.known:
        return ""
    mean = f"{percent(cell.estimate.mean, digits):{'+' if cell.signed else ''}.{digits}f}"
    mean = f"**{mean}**" if cell.bold else mean
    half_width = cell.estimate.half_width
    return f"{mean} ± {percent(half_width, digits):.{digits}f}" if math.isfinite(half_width) else mean


def table(content: Table) -> str:
    """Return the table in GitHub Markdown, without its caption."""
    width = len(content.heads)
    lines = [_line([escape(content.corner), *(escape(head) for head in content.heads)]), _line(["---", *["---:"] * width])]
    for block in content.blocks:
        if block.title:
            lines.append(_line([f"**{escape(block.title)}**", *[""] * width]))
        for row in block.rows:
            label = f"*{escape(row.label)}*" if row.average else escape(row.label)
            lines.append(_line([label, *(cell_text(cell, content.digits) for cell in row.cells)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def page(content: Table) -> str:
    """Return the table with its caption and footnotes."""
    notes = "".join(f"\n*{escape(note)}*\n" for note in content.notes)
    return f"{table(content)}\n{escape(content.caption)}\n{notes}"


def table_csv(content: Table) -> str:
    """Return the table as CSV: percentages with two digits more than in the table, half-widths or deviations in separate columns."""
    numeric = [any(row.cells[i].text is None for block in content.blocks for row in block.rows) for i in range(len(content.heads))]
    header = [content.corner, "block"]
    for head, is_number in zip(content.heads, numeric, strict=True):
        header += [head, f"{head} {content.spread}", f"{head} bold"] if is_number else [head]
    lines: list[list[str]] = [header]
    for block in content.blocks:
        lines += [[row.label, block.title, *_csv_cells(row, numeric, content.digits + 2)] for row in block.rows]
    return write_csv(lines)


def _csv_cells(row: Row, numeric: Sequence[bool], digits: int) -> list[str]:
    cells: list[str] = []
    for cell, is_number in zip(row.cells, numeric, strict=True):
        if is_number and cell.text is not None:
            cells += [cell.text, "", "1" if cell.bold else "0"]
        elif is_number:
            cells += [*(csv_number(100 * v, digits) for v in (cell.estimate.mean, cell.estimate.half_width)), "1" if cell.bold else "0"]
        else:
            cells.append(cell.text or "")
    return cells


def link(text: str, target: str) -> str:
    """Return a link to a file of the report."""
    return f"[{escape(text)}]({quote(target)})"


def index(title: str, tables: Sequence[Table], figures: Sequence[tuple[str, str, str]], notes: Sequence[str]) -> str:
    """Return the first page of the report: tables inline with links to their files, figures (heading, path, caption), and notes."""
    parts = [f"# {escape(title or 'Report')}\n", "The protocol page of the documentation describes how these numbers are computed.\n"]
    for content in tables:
        files = " ".join(link(end, f"{content.stem}.{end}") for end in ("tex", "tabular.tex", "csv", "md"))
        shown = page(content) if content.inline else f"{escape(content.caption)}\n"
        parts.append(f"## {escape(content.heading)}\n\n{shown}\n{files}\n")
    for heading, name, caption in figures:
        files = " ".join(link(end, f"{name}.{end}") for end in ("pdf", "png", "csv"))
        parts.append(f"## {escape(heading)}\n\n![{escape(heading)}]({quote(name)}.png)\n\n{escape(caption)}\n\n{files}\n")
    if notes:
        parts.append("## Skipped or noteworthy\n\n" + "".join(f"- {escape(note)}\n" for note in notes))
    return "\n".join(parts)
