"""Console and tables of the verbs."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smatcli.safe.text import shown

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Return a console as wide as the terminal; in a pipe or a file, wide enough that no cell is folded."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Any]], total: bool = False, left: Sequence[str] = ()) -> None:
    """Print a table. Columns are right-aligned except `left`, "dataset", "content" and "status"; with `total`, the last row is a sum."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="left" if head in ("dataset", "content", "status", *left) else "right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(*(Text(shown(str(cell))) for cell in row), style="bold" if total and index == len(rows) - 1 else None)
    console().print(table)


def size_text(count: int) -> str:
    """Return a number of bytes as text in MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
