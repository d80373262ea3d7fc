"""Building a text together with its exact block spans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rag.errors import InputError
from rag.limits import Limits
from rag.parsers._base import file_stem
from rag.text import trimmed
from rag.types import Block, BlockKind, Document, Page, Span

__all__ = ["LINE", "Meta", "TextBuilder", "first_heading", "line_starts", "ordered", "paragraph_spans"]

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
"""A line with its end; the last match in a text is empty."""

_UNSAFE = re.compile("[\x00\ud800-\udfff]")

Meta = Mapping[str, str | int | float | bool]
"""What a document records about itself: JSON scalars only."""

CELL_GAP = " | "
"""Stands between two cells of a row."""


class TextBuilder:
    """Grows a text block by block. Blocks are parted by a gap, "\\n\\n" unless told otherwise."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts: list[str] = []
        self._length = 0
        self._blocks: list[Block] = []
        self._pages: list[Page] = []

    @property
    def length(self) -> int:
        return self._length

    @property
    def blocks(self) -> Sequence[Block]:
        return self._blocks

    def add(self, text: str, kind: BlockKind, *, level: int = 0, gap: str = "\n\n") -> Span | None:
        """Append one block, `gap` before it; nothing happens (None) when the text is blank.

        NUL and lone surrogates become U+FFFD: neither can be stored or sent as UTF-8.
        """
        if not text.strip():
            return None
        if self._length:
            self._append(gap)
        start = self._length
        self._append(_UNSAFE.sub("\ufffd", text))
        span = Span(start, self._length)
        self._blocks.append(Block(span=span, kind=kind, level=level))
        if len(self._blocks) > self._limits.max_blocks:
            raise InputError(self._limits.over("max_blocks"))
        return span

    def add_table(self, rows: Iterable[Sequence[str]]) -> Span | None:
        """Append a table, one line per row, cells joined by " | "; rows without any text are left out."""
        first = len(self._blocks)
        gap = "\n\n"
        for row in rows:
            cells = [" ".join(cell.split()) for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            if cells and self.add(CELL_GAP.join(cells), "row", gap=gap):
                gap = "\n"
        if len(self._blocks) == first:
            return None
        span = Span(self._blocks[first].span.start, self._length)
        self._blocks.insert(first, Block(span=span, kind="table"))
        return span

    def add_page(self, number: int, start: int) -> None:
        """Declare everything from `start` on as page `number`; a page without text is left out."""
        if self._length > start:
            first = start + (2 if start else 0)  # the gap before the first block belongs to no page
            self._pages.append(Page(number=number, span=Span(first, self._length)))

    def document(self, source: str, *, title: str = "", meta: Meta) -> Document:
        """The finished document; without a title the first heading names it, else the file."""
        text = "".join(self._parts)
        blocks = ordered(self._blocks)
        clean = _UNSAFE.sub("\ufffd", " ".join(title.split()))
        return Document(
            text=text,
            source=source,
            title=clean or first_heading(text, blocks) or file_stem(source),
            blocks=blocks,
            pages=tuple(self._pages),
            meta=meta,
        )

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        if self._length > self._limits.max_characters:
            raise InputError(self._limits.over("max_characters"))


def ordered(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Sorted by start; what holds another block stands before it, a table before its only row."""
    return tuple(sorted(blocks, key=lambda block: (block.span.start, -block.span.end, block.kind != "table")))


def first_heading(text: str, blocks: Iterable[Block]) -> str:
    """The words of the first heading, "" without one."""
    for block in blocks:
        if block.kind == "heading":
            return " ".join(text[block.span.start : block.span.end].strip().strip("#").split())
    return ""


def line_starts(text: str) -> list[int]:
    """Offset of every line, then the length of the text; lines end at CR LF, CR or LF."""
    return [match.start() for match in LINE.finditer(text) if match.group()] + [len(text)]


def paragraph_spans(text: str) -> Iterator[Span]:
    """Runs of lines between blank lines, without the white space around them. Linear in the text."""
    start: int | None = None
    for match in LINE.finditer(text):
        if match.group().strip():
            start = match.start() if start is None else start
        elif start is not None:
            yield trimmed(text, Span(start, match.start()))
            start = None
    if start is not None:
        yield trimmed(text, Span(start, len(text)))
