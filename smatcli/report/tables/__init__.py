"""Tables of a report, free of any output format."""

from smatcli.moved import attribute_error
from smatcli.report.tables.table import Block, Cell, Row, Table

__all__ = ["Block", "Cell", "Row", "Table"]

__getattr__ = attribute_error(__name__)
