"""Where a document may be cut, level by level from coarse to fine.

A cut point is an offset; white space before it belongs to the piece before it. No cut parts a heading from the text
under it, a table's header from its first row, or a user-visible character.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial

from rag.text import SentenceStarts, may_cut, sentence_spans
from rag.types import Block, Document

__all__ = ["STRUCTURE", "CutLevels", "Table", "outer_blocks", "tables"]

STRUCTURE = ("headings", "blocks", "parts", "blank-lines", "lines", "sentences")
"""All levels, from coarse to fine."""

_BLANK_LINES = re.compile(r"(?:\n|\r\n?+)(?:[ \t]*(?:\n|\r\n?+))+")
_LINE_ENDS = re.compile(r"[\n\r\f\u2028\u2029](?:(?<=\r)\n)?+(?:[ \t]*(?:\n|\r\n?+))*")
_VISIBLE = re.compile(r"\S")


class Table:
    """A table block. `header` is its first row on one line; from `body` on, rows have left that header behind."""

    def __init__(self, document: Document, block: Block, rows: Sequence[Block]) -> None:
        text = document.text
        first = text.find("\n", block.span.start, block.span.end) + 1 or block.span.end
        header_end = rows[0].span.end if rows else first
        self.start, self.end = block.span.start, block.span.end
        self.header = " ".join(text[self.start : header_end].split())
        if len(rows) > 1:
            self.body = rows[1].span.start
        else:
            second = text.find("\n", first, self.end) + 1 or self.end
            self.body = second if _is_rule(text[first:second]) else first


def _is_rule(line: str) -> bool:
    """True for the line of dashes under a table's header."""
    return "-" in line and not line.strip("-=|:+ \t\r\n")


def outer_blocks(document: Document) -> list[Block]:
    """The blocks that lie inside no other block."""
    outer: list[Block] = []
    for block in sorted(document.blocks, key=lambda block: (block.span.start, -block.span.end)):
        if not outer or block.span.start >= outer[-1].span.end:
            outer.append(block)
    return outer


def tables(document: Document) -> list[Table]:
    """The tables of a document in order, each with its header row."""
    rows = [block for block in document.blocks if block.kind == "row"]
    starts = [row.span.start for row in rows]
    found: list[Table] = []
    for block in document.blocks:
        if block.kind == "table":
            low, high = bisect_left(starts, block.span.start), bisect_left(starts, block.span.end)
            found.append(Table(document, block, rows[low:high]))
    return found


class CutLevels:
    """Sorted cut points of a document for each level, made when first asked for.

    Level names: `headings` (one level per heading depth), `blocks`, `parts` (rows and list items inside of blocks),
    `blank-lines`, `lines`, `sentences`.
    """

    def __init__(self, document: Document, names: Sequence[str]) -> None:
        self._document = document
        self._makers: list[Callable[[], Iterable[int]]] = []
        for name in names:
            self._makers.extend(self._level(name))
        self._points: dict[int, list[int]] = {}
        self._glued = _glued(document)

    def __len__(self) -> int:
        return len(self._makers)

    def points(self, level: int) -> list[int]:
        """All cut points of `level`, sorted."""
        if level not in self._points:
            self._points[level] = self._allowed(sorted(set(self._makers[level]())))
        return self._points[level]

    def between(self, level: int, start: int, end: int) -> tuple[list[int], int, int]:
        """Sorted points and the range of those inside of (start, end); sentences are looked for only there."""
        if self._makers[level] == self._sentences and level not in self._points:
            points = self._allowed(self._sentence_starts.between(start, end))
            return points, 0, len(points)
        points = self.points(level)
        return points, bisect_right(points, start), bisect_left(points, end)

    @cached_property
    def _sentence_starts(self) -> SentenceStarts:
        return SentenceStarts(self._document)

    def _sentences(self) -> Iterable[int]:
        return (span.start for span in sentence_spans(self._document))

    def _allowed(self, points: list[int]) -> list[int]:
        text, glued = self._document.text, bool(self._glued[0])
        return [at for at in points if 0 < at < len(text) and may_cut(text, at) and not (glued and self._is_glued(at))]

    def _is_glued(self, at: int) -> bool:
        begins, ends = self._glued
        place = bisect_left(begins, at) - 1
        return place >= 0 and at <= ends[place]

    def _level(self, name: str) -> list[Callable[[], Iterable[int]]]:
        document, text = self._document, self._document.text
        if name == "headings":
            depths = sorted({block.level for block in document.blocks if block.kind == "heading"})
            return [partial(_heading_starts, document, depth) for depth in depths]
        makers: dict[str, Callable[[], Iterable[int]]] = {
            "blocks": lambda: (block.span.start for block in outer_blocks(document)),
            "parts": lambda: (block.span.start for block in document.blocks),
            "blank-lines": lambda: (match.end() for match in _BLANK_LINES.finditer(text)),
            "lines": lambda: (match.end() for match in _LINE_ENDS.finditer(text)),
            "sentences": self._sentences,
        }
        return [makers[name]]


def _heading_starts(document: Document, depth: int) -> Iterable[int]:
    return (block.span.start for block in document.blocks if block.kind == "heading" and block.level <= depth)


def _glued(document: Document) -> tuple[list[int], list[int]]:
    """Ranges (begin, end] without a cut: from a heading to its text, from a table's start to its first row."""
    ranges = [(table.start, table.body) for table in tables(document) if table.body < table.end]
    for block in document.blocks:
        if block.kind == "heading":
            visible = _VISIBLE.search(document.text, block.span.end)
            if visible:
                ranges.append((block.span.start, visible.start()))
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return [begin for begin, _ in merged], [end for _, end in merged]
