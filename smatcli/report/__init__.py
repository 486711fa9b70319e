"""Reports: tables (LaTeX, CSV, Markdown), figures (PNG, PDF, CSV) and an HTML page from the results of runs. Imports no torch."""

from smatcli.report.write import Report, ReportOptions, report

__all__ = ["Report", "ReportOptions", "report"]
