"""The context line of a chunk: title, heading path, and a table's header row. It is embedded, and never in the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from pathlib import PurePosixPath

from chunkers._base import SizedChunker
from chunkers._cuts import tables
from rag.text import TokenMap, fit_tokens
from rag.types import Document

__all__ = ["Headers"]

_VISIBLE = re.compile(r"\S")


class Headers:
    """The context line for a chunk that starts at an offset of one document, at most a quarter of the limit.

    `path` and `title` say whether it holds the heading path and the title, `rows` whether it holds the header row of
    a table that was cut. A title that is a heading above the chunk, or begins it, is not said
    twice; one that is only the name of the file says nothing.
    """

    def __init__(
        self, chunker: SizedChunker, document: Document, *, path: bool, title: bool = False, rows: bool = True
    ) -> None:
        self._chunker = chunker
        self._document = document
        self._with_path = path
        named = title and document.title != PurePosixPath(document.source.replace("\\", "/")).stem
        self._title = " ".join(document.title.split()) if named else ""
        self._heading_starts = [block.span.start for block in document.blocks if block.kind == "heading"]
        self._tables = tables(document) if rows else []
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
        """Title and heading path and, inside of a table, the table's header row, a line each; "" for neither."""
        path, row = " > ".join(self._names(start)), self._row(start)
        if (path, row) not in self._made:
            self._made[path, row] = self._assembled(path, row, self._chunker.token_limit // 4)
        return self._made[path, row]

    def _names(self, start: int) -> tuple[str, ...]:
        above = self.path(start) if self._with_path else ()
        if not self._title or self._title in above or self._begins_with_title(start):
            return above
        return (self._title, *above)

    def _begins_with_title(self, start: int) -> bool:
        """True for a chunk whose first visible characters, behind the marks of a heading, are the title."""
        text = self._document.text
        visible = _VISIBLE.search(text, start)
        first = text[visible.start() : visible.start() + len(self._title) + 8] if visible else ""
        return first.lstrip("# \t").startswith(self._title)

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
