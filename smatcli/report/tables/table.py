"""Tables independent of output formats: cells, rows, blocks."""

from dataclasses import dataclass, field

from smatcli.runs.statistics import UNKNOWN, Estimate


@dataclass(frozen=True)
class Cell:
    """A cell: literal `text`, or an accuracy (a fraction, printed in percent) with its half-width. `signed` numbers have a plus sign."""

    estimate: Estimate = UNKNOWN
    bold: bool = False
    signed: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Row:
    """A labelled row; `average` rows are set off from the others."""

    label: str
    cells: list[Cell]
    average: bool = False


@dataclass(frozen=True)
class Block:
    """Rows under a title, which may be empty."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Table:
    """A table: `stem` names its files, `heading` its section on the index page, `corner` the column of row labels.

    `families` are headings over adjacent columns: (title, number of columns). `notes` are footnotes of one or more sentences. A table
    that is not `inline` is only linked from the index page. `spread` names the number after the ± sign.
    """

    stem: str
    heading: str
    caption: str
    corner: str
    heads: list[str]
    blocks: list[Block]
    families: list[tuple[str, int]] = field(default_factory=list)
    digits: int = 1
    notes: list[str] = field(default_factory=list)
    inline: bool = True
    spread: str = "half-width"
