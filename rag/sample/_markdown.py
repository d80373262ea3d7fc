"""Sample content in Markdown -> a flat list of parts that the PDF and DOCX writers draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = ["Part", "Run", "read_parts"]


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of text in one style."""

    text: str
    bold: bool = False
    italic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A heading (`level` 1..6), a paragraph, a bullet, a numbered item or a table (`rows`, the first is the header)."""

    kind: Literal["heading", "paragraph", "bullet", "number", "table"]
    runs: tuple[Run, ...] = ()
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)


def read_parts(markdown: str) -> list[Part]:
    """The parts in order. Known: headings, paragraphs, flat lists, tables, strong and emphasis."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    parts: list[Part] = []
    rows: list[list[str]] = []
    kind: Literal["heading", "paragraph", "bullet", "number"] = "paragraph"
    level = 0
    in_table = False
    for token in tokens:
        match token.type:
            case "heading_open":
                kind, level = "heading", int(token.tag[1:])
            case "bullet_list_open":
                kind = "bullet"
            case "ordered_list_open":
                kind = "number"
            case "heading_close" | "bullet_list_close" | "ordered_list_close":
                kind, level = "paragraph", 0
            case "table_open":
                in_table, rows = True, []
            case "tr_open":
                rows.append([])
            case "table_close":
                in_table = False
                parts.append(Part(kind="table", rows=tuple(tuple(row) for row in rows)))
            case "inline" if in_table:
                rows[-1].append("".join(run.text for run in _runs(token)))
            case "inline":
                parts.append(Part(kind=kind, runs=_runs(token), level=level))
    return parts


def _runs(token: Token) -> tuple[Run, ...]:
    runs: list[Run] = []
    bold = italic = False
    for child in token.children or ():
        match child.type:
            case "strong_open" | "strong_close":
                bold = child.type == "strong_open"
            case "em_open" | "em_close":
                italic = child.type == "em_open"
            case "softbreak":
                runs.append(Run(" ", bold, italic))
            case "text":
                runs.append(Run(child.content, bold, italic))
    return tuple(run for run in runs if run.text)
