"""Results of runs -> tables (LaTeX, CSV, Markdown) and figures (PNG, PDF, CSV) in one folder, with an index page. Knows no torch."""

from smatcli.report.write import Report, report

__all__ = ["Report", "report"]
