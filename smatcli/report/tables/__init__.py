"""Tables of a report, independent of output formats."""

from smatcli.moved import attribute_error
from smatcli.report.tables.table import Block, Cell, Row, Table

__all__ = ["Block", "Cell", "Row", "Table"]

__getattr__ = attribute_error(__name__)
