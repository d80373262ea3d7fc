"""Structure-aware chunks: sections by heading path, whole tables and code blocks, table headers repeated."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import CutLevels, tables
from chunkers._pack import join_small, split
from rag.text import TokenMap, fit_tokens
from rag.types import Chunk, Document

_VISIBLE = re.compile(r"\S")


@dataclass(frozen=True, kw_only=True)
class MarkdownChunker(SizedChunker):
    """Cuts at the headings and blocks of any parsed format: a chunk holds one section, or small sections side by side.

    A heading stays with the text under it. A table or code block stays whole where it fits; a larger one is cut
    between rows or lines, and later parts of a table carry its header row in `Chunk.header`.
    `heading_header`: put the heading path above a chunk into `Chunk.header`, which is embedded with the text.
    `min_tokens`: a section below it joins a neighbour under the same parent heading when both fit together.
    """

    heading_header: bool = True
    min_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        text = document.text
        if not text.strip():
            return []
        headers = _Headers(self, document)
        ruler = self.ruler(document, header=headers.at)
        sections = CutLevels(document, ("headings",))
        inside = CutLevels(document, ("blocks", "parts", "blank-lines", "lines", "sentences"))
        borders = sections.points(len(sections) - 1) if len(sections) else []
        ends: list[int] = []
        for start, end in tiles_of([*borders, len(text)]):
            ends.extend(split(ruler, inside, start, end))
        ends = join_small(ruler, 0, ends, self.min_tokens, headers.is_under)
        return self.cut(document, tiles_of(ends), ruler.tokens, headers.at)


class _Headers:
    """The context line for a chunk that starts at an offset of one document, at most a quarter of the limit."""

    def __init__(self, chunker: MarkdownChunker, document: Document) -> None:
        self._chunker = chunker
        self._document = document
        self._heading_starts = [block.span.start for block in document.blocks if block.kind == "heading"]
        self._tables = tables(document)
        self._table_starts = [table.start for table in self._tables]
        self._made: dict[tuple[str, str], str] = {}

    def path(self, start: int) -> tuple[str, ...]:
        """The headings above a chunk; the one that it starts with stands in its text already."""
        visible = _VISIBLE.search(self._document.text, start)
        at = bisect_right(self._heading_starts, visible.start() if visible else start) - 1
        if at >= 0 and self._heading_starts[at] >= start:
            return self._document.section_at(self._heading_starts[at])[:-1]
        return self._document.section_at(start)

    def is_under(self, first: int, second: int) -> bool:
        """True when all headings above a chunk at `first` stand above one at `second` too."""
        above = self.path(first)
        return self.path(second)[: len(above)] == above

    def at(self, start: int) -> str:
        """Heading path and, inside of a table, the table's header row, a line each; "" when there is neither."""
        path = " > ".join(self.path(start)) if self._chunker.heading_header else ""
        row = self._row(start)
        if (path, row) not in self._made:
            self._made[path, row] = self._assembled(path, row, self._chunker.token_limit // 4)
        return self._made[path, row]

    def _assembled(self, path: str, row: str, limit: int) -> str:
        """Within `limit`; where both are long, each gets a half."""
        path = self._shortened(path, limit // 2 if row else limit)
        row = self._shortened(row, limit - self._chunker.counter.count(path))
        return "\n".join(line for line in (path, row) if line)

    def _row(self, start: int) -> str:
        at = bisect_right(self._table_starts, start) - 1
        table = self._tables[at] if at >= 0 else None
        return table.header if table and table.body <= start < table.end else ""

    def _shortened(self, line: str, max_tokens: int) -> str:
        if not line or max_tokens < 1:
            return ""
        counter, chars = self._chunker.counter, max(1, self._chunker.char_limit // 4)
        end = fit_tokens(TokenMap(counter, line), line, 0, len(line), max_tokens, chars)
        return line[:end].strip()
