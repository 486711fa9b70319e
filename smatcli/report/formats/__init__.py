"""Output formats of a report: LaTeX, Markdown, CSV and HTML."""
