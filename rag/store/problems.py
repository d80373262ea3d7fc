# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Where the rows of an index disagree: what `verify` reports and `repair` acts on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from operator import itemgetter

from rag.errors import RagError
from rag.store.database import Database, Row
from rag.store.read import read_document, read_state
from rag.store.schema import LEXICAL
from rag.store.write import chunks_crc, document_crc, lexical_rows, meta_rows
from rag.types import Document, content_key

__all__ = ["DocumentProblems", "count_unembedded", "document_problems", "lexical_problems", "meta_differs"]

_HEAD = "SELECT doc_id, source, title, chars, decision, meta, blocks, pages FROM documents WHERE id = ?"
_CHUNKS = (
    "SELECT start, stop, parent_start, parent_stop, token_count, key, header, section, chunker, surround "
    "FROM chunks WHERE document = ? ORDER BY start, stop"
)


@dataclass
class DocumentProblems:
    """Of one document. With `document` problems its text or its facts are not what was committed; with only `chunks`
    problems the text is sound and can be cut again."""

    document: list[str] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    count: int = 0
    """How many chunks were looked at."""


def document_problems(db: Database, row: int) -> DocumentProblems:
    """Check the document in a row: its text against its id, every chunk against the text, all rows against the
    checksums that were committed with them."""
    found = DocumentProblems()
    try:
        head = db.one(_HEAD, (row,)) or ()
        doc_id, source, _, chars = head[:4]
        crc, crc_of_chunks = db.one("SELECT crc, chunks_crc FROM documents WHERE id = ?", (row,)) or (0, 0)
        document = read_document(db, doc_id)
    except (RagError, ValueError, TypeError, KeyError, IndexError) as error:
        found.document.append(f"document row {row} cannot be read: {error}")
        return found
    if document.id != doc_id or len(document.text) != chars:
        found.document.append(f"document {doc_id} ({source}): its text is not the one that was committed")
    elif document_crc(head) != crc:
        found.document.append(f"document {doc_id} ({source}): its title, pages or metadata are not as committed")
    _chunks(db, row, document, doc_id, crc_of_chunks, found)
    return found


def _chunks(db: Database, row: int, document: Document, doc_id: str, crc: int, found: DocumentProblems) -> None:
    try:
        rows = db.rows(_CHUNKS, (row,))
        ids = db.rows("SELECT start, stop FROM chunks WHERE document = ? ORDER BY id", (row,))
    except RagError as error:
        found.chunks.append(f"document {doc_id}: its chunks cannot be read: {error}")
        return
    found.count = len(rows)
    for start, stop, _, _, _, key, header, _, _, surround in rows:
        name = f"chunk {doc_id}:{start}-{stop}"
        try:
            if not 0 <= start < stop <= len(document.text):
                found.chunks.append(f"{name} lies outside of its document with {len(document.text)} characters")
            elif content_key(header, document.text[start:stop], surround) != key.hex():
                found.chunks.append(f"{name}: the document's text at its span is not the text that was chunked")
        except (TypeError, AttributeError) as error:
            found.chunks.append(f"{name} cannot be read: {error}")
    if ids != sorted(ids):
        found.chunks.append(f"the chunks of document {doc_id} are out of reading order")
    if not found.chunks and chunks_crc(rows) != crc:
        found.chunks.append(f"document {doc_id}: its chunks are not all, or not as, they were committed")


def count_unembedded(db: Database) -> int:
    """Chunks without a vector of the embedder that the manifest names; 0 when it names none."""
    fingerprint = read_state(db, "manifest").get("fingerprint")
    sql = (
        "SELECT count(*) FROM chunks c WHERE NOT EXISTS (SELECT 1 FROM vectors v JOIN fingerprints f "
        "ON f.id = v.fingerprint WHERE f.name = ? AND v.key = c.key)"
    )
    return 0 if fingerprint is None else int(db.value(sql, (fingerprint,)))


def meta_differs(db: Database, row: int, document: Document) -> bool:
    """True when the metadata that filters read is not the document's."""
    sql = "SELECT name, value FROM document_meta WHERE document = ? ORDER BY name"
    held = [(name, type(value), value) for name, value in db.rows(sql, (row,))]
    return held != [(name, type(value), value) for name, value in meta_rows(document.meta)]


def lexical_problems(db: Database, checked: dict[str, int]) -> Iterator[str]:
    """Every chunk has its row with the right lengths, and every term its places, as in an index built anew."""
    checked["lexical"] = db.value("SELECT count(*) FROM lexical_docsize")
    for (row,) in db.rows("SELECT id FROM chunks EXCEPT SELECT id FROM lexical_docsize"):
        yield f"chunk row {row} is missing in the full-text index"
    for (row,) in db.rows("SELECT id FROM lexical_docsize EXCEPT SELECT id FROM chunks"):
        yield f"row {row} of the full-text index belongs to no chunk"
    db.run(f"CREATE VIRTUAL TABLE temp.fresh USING {LEXICAL}")
    db.many("INSERT INTO temp.fresh(rowid, text, heading) VALUES (?, ?, ?)", lexical_rows(db))
    for (row,) in db.rows(
        "SELECT a.id FROM main.lexical_docsize a JOIN temp.fresh_docsize b ON b.id = a.id WHERE a.sz <> b.sz"
    ):
        yield f"chunk row {row} has another text in the full-text index"
    db.run("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, lexical, row)")
    checked["terms"] = db.value("SELECT count(*) FROM temp.terms")
    db.run("CREATE VIRTUAL TABLE temp.places_now USING fts5vocab(main, lexical, instance)")
    db.run("CREATE VIRTUAL TABLE temp.places_fresh USING fts5vocab(temp, fresh, instance)")
    now, fresh = (db.stream(f"SELECT term, doc, col, offset FROM temp.places_{name}") for name in ("now", "fresh"))
    for term in _differing_terms(now, fresh):
        yield f"the word {term!r} has wrong places in the full-text index"


def _differing_terms(now: Iterator[Row], fresh: Iterator[Row]) -> Iterator[str]:
    """The terms whose places differ. Both streams are in order of their terms; equal counts alone would prove little,
    since a flipped bit may move a word to another chunk."""
    left, right = groupby(now, itemgetter(0)), groupby(fresh, itemgetter(0))
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if a is not None and (b is None or a[0] < b[0]):
            yield str(a[0])
            a = next(left, None)
        elif b is not None and (a is None or b[0] < a[0]):
            yield str(b[0])
            b = next(right, None)
        elif a is not None and b is not None:
            if any(x != y for x, y in zip_longest(a[1], b[1])):
                yield str(a[0])
            a, b = next(left, None), next(right, None)
