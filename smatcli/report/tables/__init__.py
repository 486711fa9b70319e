"""Tables of a report, free of any output format."""

from smatcli.report.tables.table import Block, Cell, Row, Table

__all__ = ["Block", "Cell", "Row", "Table"]
