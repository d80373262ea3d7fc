# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Documents and chunks out of the tables. Every function wants to be called inside `reading()` or a snapshot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rag.errors import IndexDamagedError
from rag.store.database import Database, Row, batches, marks, understood
from rag.store.schema import PART_CHARS
from rag.types import Block, Chunk, Document, Page, Span, parse_chunk_id

__all__ = [
    "TextReader",
    "chunk_row",
    "document_row",
    "read_chunks",
    "read_document",
    "read_state",
    "slice_chunks",
    "sound_document",
]

CHUNK_COLUMNS = (
    "c.id, c.document, d.doc_id, c.start, c.stop, c.parent_start, c.parent_stop, "
    "c.token_count, c.section, c.header, c.chunker, c.surround, c.key"
)
_CURE = "Run `rag verify` for the details and `rag repair` to mend the index."
CHUNK_TABLES = "chunks c JOIN documents d ON d.id = c.document"


class TextReader:
    """Slices of stored texts. Keeps the parts of the few last reads, since neighbours share them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._parts: dict[tuple[int, int], str] = {}

    def slice(self, document: int, start: int, stop: int) -> str:
        """`text[start:stop]` of the document in row `document`; IndexDamagedError when a part of it is missing."""
        first, last = start // PART_CHARS, (stop - 1) // PART_CHARS
        parts = [self._parts.get((document, part)) for part in range(first, last + 1)]
        if None in parts:
            parts = self._load(document, first, last)
        text = "".join(part or "" for part in parts)
        piece = text[start - first * PART_CHARS : stop - first * PART_CHARS]
        if len(piece) != stop - start:
            raise IndexDamagedError(
                f"{self._db.path}: the text of document row {document} ends before character {stop}. "
                "Run `rag verify` for the details."
            )
        return piece

    def _load(self, document: int, first: int, last: int) -> list[str | None]:
        sql = "SELECT part, text FROM document_texts WHERE document = ? AND part BETWEEN ? AND ? ORDER BY part"
        rows = self._db.rows(sql, (document, first, last))
        if len(self._parts) > 64:
            self._parts.clear()
        self._parts.update({(document, part): text for part, text in rows})
        return [text for _, text in rows]


def read_state(db: Database, name: str) -> Any:
    """A value of the state table."""
    with understood(db.path):
        return json.loads(db.value("SELECT value FROM state WHERE name = ?", (name,)))


def document_row(db: Database, doc_id: str) -> int:
    """The row of a document; KeyError for an unknown id."""
    row = db.value("SELECT id FROM documents WHERE doc_id = ?", (doc_id,))
    if row is None:
        raise KeyError(doc_id)
    return int(row)


def read_document(db: Database, doc_id: str) -> Document:
    """The document, equal to the one that was committed; KeyError for an unknown id."""
    row = db.one("SELECT id, source, title, meta, blocks, pages FROM documents WHERE doc_id = ?", (doc_id,))
    if row is None:
        raise KeyError(doc_id)
    number, source, title, meta, blocks, pages = row
    parts = db.rows("SELECT text FROM document_texts WHERE document = ? ORDER BY part", (number,))
    with understood(db.path):
        return Document(
            text="".join(text for (text,) in parts),
            source=source,
            title=title,
            meta=json.loads(meta),
            blocks=tuple(Block(span=Span(a, b), kind=kind, level=level) for a, b, kind, level in json.loads(blocks)),
            pages=tuple(Page(number=page, span=Span(a, b)) for page, a, b in json.loads(pages)),
        )


def sound_document(db: Database, doc_id: str) -> Document:
    """As `read_document`, and IndexDamagedError when it is not the text that its id was made from."""
    document = read_document(db, doc_id)
    if document.id != doc_id:
        raise IndexDamagedError(f"{db.path}: the text of document {doc_id} is not the one that was stored. {_CURE}")
    return document


def chunk_row(db: Database, chunk_id: str) -> int:
    """The row of a chunk; KeyError for an unknown id."""
    try:
        doc_id, span = parse_chunk_id(chunk_id)
    except ValueError:
        raise KeyError(chunk_id) from None
    row = db.value(
        f"SELECT c.id FROM {CHUNK_TABLES} WHERE d.doc_id = ? AND c.start = ? AND c.stop = ?",
        (doc_id, span.start, span.end),
    )
    if row is None:
        raise KeyError(chunk_id)
    return int(row)


def read_chunks(db: Database, texts: TextReader, rows: Sequence[int]) -> list[Chunk]:
    """Chunks in the order of `rows`; KeyError for an unknown row."""
    found: dict[int, Chunk] = {}
    for part in batches([int(row) for row in rows]):
        sql = f"SELECT {CHUNK_COLUMNS} FROM {CHUNK_TABLES} WHERE c.id IN ({marks(part)}) ORDER BY c.id"
        found.update((row[0], _chunk(db, row, texts)) for row in db.rows(sql, part))
    return [found[int(row)] for row in rows]


def slice_chunks(db: Database, texts: TextReader, document: int) -> list[Chunk]:
    """All chunks of one document, in reading order."""
    sql = f"SELECT {CHUNK_COLUMNS} FROM {CHUNK_TABLES} WHERE c.document = ? ORDER BY c.id"
    return [_chunk(db, row, texts) for row in db.rows(sql, (document,))]


def _chunk(db: Database, row: Row, texts: TextReader) -> Chunk:
    """The chunk, its words compared with the key it was stored under: spoiled text is never served as a citation."""
    _, document, doc_id, start, stop, parent_start, parent_stop, token_count, section, header, *rest = row
    chunker, surround, key = rest
    with understood(db.path):
        chunk = Chunk(
            doc_id=doc_id,
            span=Span(start, stop),
            text=texts.slice(document, start, stop),
            token_count=token_count,
            section=tuple(json.loads(section)),
            header=header,
            chunker=chunker,
            parent=None if parent_start is None else Span(parent_start, parent_stop),
            surround=surround,
        )
        spoiled = chunk.key != key.hex()
    if spoiled:
        raise IndexDamagedError(f"{db.path}: the text of chunk {chunk.id} is not the one that was stored. {_CURE}")
    return chunk
