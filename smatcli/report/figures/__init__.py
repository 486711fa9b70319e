"""Figures of a report, and the data behind them."""

from smatcli.moved import attribute_error

__getattr__ = attribute_error(__name__)
