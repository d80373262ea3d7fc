"""The report of `rag eval run`: results.json as one HTML file that needs nothing else, and as Markdown."""

from __future__ import annotations

from eval.report.markdown import markdown
from eval.report.page import html, write_html

__all__ = ["html", "markdown", "write_html"]
