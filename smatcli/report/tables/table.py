"""Tables free of any output format: cells, rows, blocks."""

from dataclasses import dataclass, field

from smatcli.runs.statistics import UNKNOWN, Estimate


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
    """`families` are headings over runs of columns: (title, columns); `stem` names the files, `heading` the index page's section.

    `notes` are footnotes, one sentence or more each; a table that is not `inline` is only linked on the index page.
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
    spread: str = "half-width"  # what stands after the ±
