"""Figures of a report and the data behind them."""
