"""Tables by their rows: as many rows to a chunk as fit, each with the table's header row; other text recursively."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import STRUCTURE, CutLevels, Table, tables
from chunkers._headers import Headers
from chunkers._pack import Ruler, join_small, split
from rag.types import Chunk, Document

_VISIBLE = re.compile(r"\S")
_ROWS = ("parts", "lines")
"""Rows are blocks where the parser knows them, else lines."""


@dataclass(frozen=True, kw_only=True)
class TableChunker(SizedChunker):
    """Keeps tables apart from text, and cuts them between rows only.

    A chunk of a table holds up to `rows` rows (None: as many as fit). Chunks after the first carry the header row in
    `Chunk.header`, behind the heading path unless `heading_header` is off; the first has the header row in its text. A
    row over the limit is cut at lines, sentences and words. Text between tables is split recursively; a heading right
    above a table stays with it.
    `min_tokens`: a chunk of text below it joins another one beside it when both fit together; rows never join text.
    """

    rows: int | None = None
    heading_header: bool = True
    min_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("rows", self.rows, 1)
        self._check_at_least("min_tokens", self.min_tokens, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        return self.decide(document)[0]

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        text = document.text
        if not text.strip():
            return [], None
        headers = Headers(self, document, path=self.heading_header)
        ruler = self.ruler(document, header=headers.at)
        prose, rows = CutLevels(document, STRUCTURE), _Rows(document)
        ends: list[int] = []
        start = 0
        for begin, end in rows.regions():
            if start < begin:
                ends.extend(join_small(ruler, start, split(ruler, prose, start, begin), self.min_tokens))
            ends.extend(self._table(ruler, rows, begin, end))
            start = end
        if start < len(text):
            ends.extend(join_small(ruler, start, split(ruler, prose, start, len(text)), self.min_tokens))
        return self.cut(document, tiles_of(ends), ruler.tokens, headers.at), self._record(len(rows.tables))

    def _table(self, ruler: Ruler, rows: _Rows, start: int, end: int) -> list[int]:
        """Ends of ranges of whole rows that tile [start, end)."""
        points = [*rows.between(start, end), end]
        ends: list[int] = []
        low = 0
        while start < end:
            high = len(points) if self.rows is None else min(len(points), low + self.rows)
            at = bisect_right(points, ruler.far(start), low, high) - 1
            while at >= low and not ruler.fits(start, points[at]):
                at -= 1
            if at >= low:
                ends.append(points[at])
            else:
                at = low
                ends.extend(split(ruler, rows.finer, start, points[at]))
            start, low = points[at], at + 1
        return ends

    def _record(self, count: int) -> dict[str, Any]:
        reason = "tables cut between rows" if count else "no table: split recursively"
        return {"chunker": self.plugin, "reason": reason, "tables": count}


class _Rows:
    """The tables of a document: where they stand, and where their rows begin."""

    def __init__(self, document: Document) -> None:
        self.finer = CutLevels(document, ("lines", "sentences"))
        self.tables: list[Table] = []
        for table in tables(document):
            if not self.tables or table.start >= self.tables[-1].end:
                self.tables.append(table)
        self._document = document
        self._levels = CutLevels(document, _ROWS)
        self._row_starts = sorted(block.span.start for block in document.blocks if block.kind == "row")

    def regions(self) -> list[tuple[int, int]]:
        """A range for every table: from its start, or from a heading that stays with it, to the next visible text."""
        text = self._document.text
        found: list[tuple[int, int]] = []
        points = CutLevels(self._document, ("blocks",)).points(0)
        for table in self.tables:
            at = bisect_right(points, table.start) - 1
            begin = max(points[at] if at >= 0 else 0, found[-1][1] if found else 0)
            visible = _VISIBLE.search(text, table.end)
            found.append((begin, visible.start() if visible else len(text)))
        return found

    def between(self, start: int, end: int) -> list[int]:
        """Where a row begins inside of (start, end), as far as a cut is allowed there."""
        low, high = bisect_left(self._row_starts, start), bisect_left(self._row_starts, end)
        points = self._levels.points(0 if low < high else 1)
        return points[bisect_right(points, start) : bisect_left(points, end)]
