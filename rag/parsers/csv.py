"""Comma- and tab-separated tables: the raw file, every record an exact slice of it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from rag.errors import InputError
from rag.parsers._base import FileParser, file_stem
from rag.parsers._blocks import Meta, line_starts, ordered
from rag.parsers._decode import decode
from rag.text import trimmed
from rag.types import Block, Document, Span

_SAMPLE_CHARS = 8_000
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, kw_only=True)
class CsvParser(FileParser):
    """One table block, a row block per record; the first row is the header. A quoted cell may span lines."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")
    version: ClassVar[int] = 1
    isolate: ClassVar[bool] = False

    def read(self, data: bytes, source: str) -> Document:
        text, encoding = decode(data)
        starts = line_starts(text)
        delimiter = _delimiter(text, source)
        try:
            spans = list(self.limited(self._records(text, starts, delimiter)))
        except csv.Error:  # such as an unclosed quote that swallows the file: then a line is a row
            spans = [Span(a, b) for a, b in self.limited(pairwise(starts))]
        rows = [Block(span=trimmed(text, span), kind="row") for span in spans if text[span.start : span.end].strip()]
        table = [Block(span=Span(rows[0].span.start, rows[-1].span.end), kind="table")] if rows else []
        meta: Meta = {"parser": "csv", "encoding": encoding, "delimiter": delimiter, "rows": len(rows)}
        return Document(text=text, source=source, title=file_stem(source), blocks=ordered(table + rows), meta=meta)

    def _records(self, text: str, starts: Sequence[int], delimiter: str) -> Iterator[Span]:
        """The span of every record. The reader says how many lines it has taken, which is all that a span needs."""
        reader = csv.reader((text[a:b] for a, b in pairwise(starts)), delimiter=delimiter)
        line = cells = 0
        for record in reader:
            cells += len(record)
            if cells > self.limits.max_cells:
                raise InputError(self.limits.over("max_cells"))
            yield Span(starts[line], starts[reader.line_num])
            line = reader.line_num


def _delimiter(text: str, source: str) -> str:
    """The delimiter that cuts most of the first records into one same number of cells, more than one.

    csv.Sniffer is not asked: it gives up on some quoted cells, and guesses on others.
    """
    usual = "\t" if source.lower().endswith(".tsv") else ","
    sample = text[:_SAMPLE_CHARS]
    lines = [sample[a:b] for a, b in pairwise(line_starts(sample))]
    candidates: tuple[str, ...] = (usual, *_DELIMITERS)
    return max(candidates, key=lambda delimiter: _agreement(lines, delimiter))


def _agreement(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """(share of records that have the most frequent width, that width); zeros when that is one cell."""
    try:
        widths = Counter(len(record) for record in csv.reader(lines, delimiter=delimiter) if record)
    except csv.Error:
        return 0.0, 0
    width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
    return (count / widths.total(), width) if width > 1 else (0.0, 0)
