"""The sentences of a context as exact places in their documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rag.answer import Citation
from rag.protocols import Corpus
from rag.text import sentence_spans, trimmed
from rag.types import Block, CompressedContext, Document, Piece, Span

__all__ = ["Sentence", "context_sentences", "documents_of"]

LONG_CHARS = 400
"""A sentence over this size that has line ends (a table, a list without full stops) is read line by line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """`text == document.text[span]`, white space at the ends left out. `mark` is the number of its piece, from 1.

    `lead` is what a reader has in mind when reading a table row: the headings above it and the header row. A header
    row says nothing by itself and counts as a heading.
    """

    mark: int
    piece: Piece
    document: Document
    span: Span
    text: str
    heading: bool
    lead: str = ""

    @property
    def in_context(self) -> str:
        """What is judged: the sentence behind its lead."""
        return f"{self.lead}\n{self.text}" if self.lead else self.text

    def cite(self) -> Citation:
        """The citation that opens this sentence."""
        return Citation(
            mark=self.mark,
            chunk_id=self.piece.chunk_id,
            doc_id=self.document.id,
            source=self.document.source,
            span=self.span,
            text=self.text,
            page=self.document.page_at(self.span.start),
        )


def documents_of(context: CompressedContext, corpus: Corpus) -> dict[str, Document]:
    """doc_id -> document for every piece."""
    return {doc_id: corpus.document(doc_id) for doc_id in dict.fromkeys(piece.doc_id for piece in context.pieces)}


def context_sentences(context: CompressedContext, documents: Mapping[str, Document]) -> list[Sentence]:
    """Sentences of the kept spans in the context's order; a place that two pieces hold belongs to the first."""
    seen: set[tuple[str, Span]] = set()
    found: list[Sentence] = []
    for mark, piece in enumerate(context.pieces, start=1):
        document = documents[piece.doc_id]
        headers = _header_rows(document, piece)
        for span, heading in _spans(piece, document):
            if (document.id, span) in seen:
                continue
            seen.add((document.id, span))
            header = next((row for table, row in headers if table.contains(span)), None)
            found.append(
                Sentence(
                    mark=mark,
                    piece=piece,
                    document=document,
                    span=span,
                    text=document.text[span.start : span.end],
                    heading=heading or (header is not None and header.contains(span)),
                    lead=_lead(document, header) if header else "",
                )
            )
    return found


def _header_rows(document: Document, piece: Piece) -> list[tuple[Span, Span]]:
    """(table, its first row) for every table that the piece touches; the first row of a table is its header."""
    tables = [b.span for b in document.blocks if b.kind == "table" and b.span.overlaps(piece.span)]
    rows = [b.span for b in document.blocks if b.kind == "row"] if tables else []
    first = ((table, next((row for row in rows if table.contains(row)), None)) for table in tables)
    return [(table, row) for table, row in first if row is not None]


def _lead(document: Document, header: Span) -> str:
    row = document.text[header.start : header.end].strip()
    return "\n".join([" ".join(document.section_at(header.start)), row]).strip()


def _spans(piece: Piece, document: Document) -> Iterator[tuple[Span, bool]]:
    """(sentence, is a heading) of the kept parts of one piece."""
    for kept in _joined(piece.kept):
        blocks = [block for block in document.blocks if block.span.overlaps(kept)]
        headings = [block.span for block in blocks if block.kind == "heading"]
        for inner in sentence_spans(_slice(document, kept, blocks)):
            for span in _lines(document.text, Span(inner.start + kept.start, inner.end + kept.start)):
                visible = trimmed(document.text, span)
                if len(visible):
                    yield visible, any(heading.contains(visible) for heading in headings)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Kept spans with those that touch or overlap made one."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def _slice(document: Document, part: Span, blocks: Sequence[Block]) -> Document:
    """`part` of the document as a document, so that only the text that was kept is split into sentences."""
    moved = tuple(
        Block(
            span=Span(max(block.span.start, part.start) - part.start, min(block.span.end, part.end) - part.start),
            kind=block.kind,
            level=block.level,
        )
        for block in blocks
    )
    return Document(text=document.text[part.start : part.end], source=document.source, blocks=moved)


def _lines(text: str, span: Span) -> Iterator[Span]:
    piece = text[span.start : span.end]
    if len(piece) <= LONG_CHARS or "\n" not in piece.strip():
        yield span
        return
    start = span.start
    for line in piece.splitlines(keepends=True):
        yield Span(start, start + len(line))
        start += len(line)
