"""LaTeX, Markdown, CSV and HTML output."""
