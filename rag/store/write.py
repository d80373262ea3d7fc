# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""One change of the index, carried out inside one transaction."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rag.errors import InputError
from rag.store.database import Database, batches, marks
from rag.store.read import TextReader, read_state
from rag.store.records import Entry, FileRecord
from rag.store.schema import PART_CHARS
from rag.store.signatures import write_signature
from rag.text import lexical_words
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = [
    "Change",
    "chunks_crc",
    "document_crc",
    "dump_json",
    "lexical_form",
    "lexical_rows",
    "lexical_signature",
    "meta_rows",
    "put_vectors",
    "rebuild_lexical",
    "write_meta",
    "write_state",
]

_CHUNK_INSERT = (
    "INSERT INTO chunks(document, start, stop, parent_start, parent_stop, token_count, key, header, section, chunker, "
    "surround) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FILE_UPSERT = (
    "INSERT INTO files(origin, source, content_hash, size_bytes, mtime_ns, recipe, document, error) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(origin) DO UPDATE SET source=excluded.source, "
    "content_hash=excluded.content_hash, size_bytes=excluded.size_bytes, mtime_ns=excluded.mtime_ns, "
    "recipe=excluded.recipe, document=excluded.document, error=excluded.error"
)
_LEXICAL_INSERT = "INSERT INTO lexical(rowid, text, heading) VALUES (?, ?, ?)"
_LEXICAL_DELETE = "INSERT INTO lexical(lexical, rowid, text, heading) VALUES ('delete', ?, ?, ?)"


def dump_json(value: Any) -> str:
    """Compact ASCII JSON, the same for equal values. Keys keep their order."""
    return json.dumps(value, separators=(",", ":"))


def write_state(db: Database, name: str, value: Any) -> None:
    """Set a value of the state table."""
    db.run("INSERT OR REPLACE INTO state(name, value) VALUES (?, ?)", (name, dump_json(value)))


def lexical_form(title: str, section: Sequence[str], text: str) -> tuple[str, str]:
    """The two columns of a chunk in the full-text index: its words, and those of title and heading path."""
    return " ".join(lexical_words(text)), " ".join(lexical_words(" ".join([title, *section])))


def lexical_signature() -> str:
    """Names the rules behind `lexical_form`. Rows made by other rules could not be deleted any more."""
    probe = " ".join(lexical_words("Straße ﬁn İx_1 cafe\u0301 北京 カﾞ 2³ don't Ⅷ ΣΑΣ"))
    return f"{unicodedata.unidata_version}-{hashlib.blake2b(probe.encode(), digest_size=4).hexdigest()}"


def document_crc(values: Sequence[Any]) -> int:
    """Checksum of a row of documents: doc_id, source, title, chars, decision, meta, blocks, pages."""
    return zlib.crc32(ascii(tuple(values)).encode())


def chunks_crc(rows: Iterable[Sequence[Any]]) -> int:
    """Checksum of the chunk rows of a document, in reading order, without their ids and their document.

    A surround, the last value, counts where there is one: rows of format 2 keep their checksums.
    """
    crc = 0
    for row in rows:
        crc = zlib.crc32(ascii(tuple(row if row[-1] else row[:-1])).encode(), crc)
    return crc


class Change:
    """Collects what a transaction did; `finish` settles what depends on all of it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._changed = False
        self._dropped_keys: set[bytes] = set()
        self.deleted: set[str] = set()
        """Documents whose rows were deleted; some may have been written anew."""
        self._texts = TextReader(db)

    def put(self, entry: Entry) -> None:
        """Store an entry in place of whatever its origin held before."""
        before = self._document_of(entry.file.origin)
        document = self._put_document(entry)
        self._put_file(entry.file, document)
        if before is not None and before != document:
            self._drop_document(before)
        if entry.fingerprint is not None:
            self._put_vectors(entry, entry.fingerprint)
        if entry.signature is not None:
            write_signature(self._db, document, entry.signature)

    def fail(self, record: FileRecord) -> None:
        """Quarantine a file. Its last good version stays until a better one comes or the file is removed."""
        self._put_file(record, self._document_of(record.origin))

    def remove(self, origin: str) -> None:
        """Forget a file; unknown origins are fine."""
        before = self._document_of(origin)
        self._db.run("DELETE FROM files WHERE origin = ?", (origin,))
        if before is not None:
            self._drop_document(before)

    def touch(self, record: FileRecord) -> None:
        """Renew the bookkeeping of a file whose document stays as it is."""
        self._db.run(
            "UPDATE files SET content_hash = ?, size_bytes = ?, mtime_ns = ?, recipe = ? WHERE origin = ?",
            (record.content_hash, record.size_bytes, record.mtime_ns, record.recipe, record.origin),
        )

    def finish(self) -> None:
        """Drop vectors that no chunk uses any more, and count the generation."""
        self._db.many(
            "DELETE FROM vectors WHERE key = ? AND NOT EXISTS (SELECT 1 FROM chunks c WHERE c.key = vectors.key)",
            ((key,) for key in sorted(self._dropped_keys)),
        )
        if self._changed:
            write_state(self._db, "generation", read_state(self._db, "generation") + 1)

    def _document_of(self, origin: str) -> int | None:
        row: int | None = self._db.value("SELECT document FROM files WHERE origin = ?", (origin,))
        return row

    def _put_file(self, file: FileRecord, document: int | None) -> None:
        row = (file.origin, file.source, file.content_hash, file.size_bytes, file.mtime_ns, file.recipe, document)
        self._db.run(_FILE_UPSERT, (*row, file.error))

    def _put_document(self, entry: Entry) -> int:
        """The row of the document. Equal chunks stay where they are; else all of them are written anew."""
        document, chunks = entry.document, sorted(entry.chunks, key=lambda chunk: chunk.span)
        old = self._db.one("SELECT id, title FROM documents WHERE doc_id = ?", (document.id,))
        if old is None:
            return self._insert_document(document, chunks, entry.decision)
        row, title = int(old[0]), old[1]
        if title == document.title and self._chunk_rows(row) == [_chunk_values(row, chunk) for chunk in chunks]:
            self._update_document(row, document, entry.decision)
            return row
        origins = self._db.rows("SELECT origin FROM files WHERE document = ?", (row,))
        self._delete_document(row)
        fresh = self._insert_document(document, chunks, entry.decision)
        self._db.many("UPDATE files SET document = ? WHERE origin = ?", ((fresh, origin) for (origin,) in origins))
        return fresh

    def _chunk_rows(self, document: int) -> list[tuple[Any, ...]]:
        columns = _CHUNK_INSERT.partition("(")[2].partition(")")[0]
        return self._db.rows(f"SELECT {columns} FROM chunks WHERE document = ? ORDER BY id", (document,))

    def _insert_document(self, document: Document, chunks: Sequence[Chunk], decision: Mapping[str, Any] | None) -> int:
        self._changed = True
        values = (*_document_head(document), *_document_values(document, decision))
        rows = [_chunk_values(0, chunk)[1:] for chunk in chunks]
        row = self._db.run(
            "INSERT INTO documents(doc_id, source, title, chars, decision, meta, blocks, pages, crc, chunks_crc) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, document_crc(values), chunks_crc(rows)),
        )
        self._db.many("INSERT INTO document_texts VALUES (?, ?, ?)", _parts(row, document.text))
        write_meta(self._db, row, document.meta)
        for chunk, held in zip(chunks, rows, strict=True):
            number = self._db.run(_CHUNK_INSERT, (row, *held))
            self._db.run(_LEXICAL_INSERT, (number, *lexical_form(document.title, chunk.section, chunk.text)))
        return row

    def _update_document(self, row: int, document: Document, decision: Mapping[str, Any] | None) -> None:
        values = _document_values(document, decision)
        if self._db.one("SELECT decision, meta, blocks, pages FROM documents WHERE id = ?", (row,)) == values:
            return
        crc = document_crc((*_document_head(document), *values))
        sql = "UPDATE documents SET decision=?, meta=?, blocks=?, pages=?, crc=? WHERE id=?"
        self._db.run(sql, (*values, crc, row))
        write_meta(self._db, row, document.meta)

    def _drop_document(self, row: int) -> None:
        """Delete a document that no file stands for any more."""
        if self._db.value("SELECT 1 FROM files WHERE document = ? LIMIT 1", (row,)) is None:
            self._delete_document(row)

    def _delete_document(self, row: int) -> None:
        head = self._db.one("SELECT title, doc_id FROM documents WHERE id = ?", (row,))
        if head is None:
            return  # written anew under another row a moment ago
        title = head[0]
        self.deleted.add(head[1])
        self._changed = True
        chunks = self._db.rows("SELECT id, start, stop, key, section FROM chunks WHERE document = ?", (row,))
        for number, start, stop, key, section in chunks:
            text = self._texts.slice(row, start, stop)
            self._db.run(_LEXICAL_DELETE, (number, *lexical_form(title, json.loads(section), text)))
            self._dropped_keys.add(key)
        self._db.run("DELETE FROM documents WHERE id = ?", (row,))

    def _put_vectors(self, entry: Entry, fingerprint: str) -> None:
        keys = sorted({chunk.key for chunk in entry.chunks})
        if not keys:
            return
        try:
            given = {key: entry.vectors[key] for key in keys if key in entry.vectors}
            self._changed = put_vectors(self._db, fingerprint, given) > 0 or self._changed
        except InputError as error:
            raise InputError(f"{entry.document.source}: {error}") from None
        held = 0
        for part in batches([bytes.fromhex(key) for key in keys]):
            sql = (
                "SELECT count(*) FROM vectors v JOIN fingerprints f ON f.id = v.fingerprint "
                f"WHERE f.name = ? AND v.key IN ({marks(part)})"
            )
            held += self._db.value(sql, (fingerprint, *part))
        if held < len(keys):
            raise InputError(
                f"{entry.document.source}: {len(keys) - held} of {len(keys)} chunk keys have no vector of "
                f"{fingerprint!r}, neither in the entry nor in the index. Embed them and commit again."
            )


def put_vectors(db: Database, fingerprint: str, vectors: Mapping[str, Vectors]) -> int:
    """Store key -> vector under a fingerprint, inside a transaction; how many were new or other than before."""
    from rag.vectors import to_blob

    number = _fingerprint_row(db, fingerprint, next((len(vector) for vector in vectors.values()), None))
    blobs = ((key, to_blob(vectors[key])) for key in sorted(vectors))
    sql = (  # a key that is given though it is held was found damaged by its checksum
        "INSERT INTO vectors(fingerprint, key, vector, crc) VALUES (?, ?, ?, ?) ON CONFLICT(key, fingerprint) "
        "DO UPDATE SET vector = excluded.vector, crc = excluded.crc WHERE vector <> excluded.vector"
    )
    return db.many(sql, ((number, bytes.fromhex(key), blob, zlib.crc32(blob)) for key, blob in blobs))


def _fingerprint_row(db: Database, fingerprint: str, dimension: int | None) -> int:
    old = db.one("SELECT id, dimension FROM fingerprints WHERE name = ?", (fingerprint,))
    if old is None:
        return db.run("INSERT INTO fingerprints(name, dimension) VALUES (?, ?)", (fingerprint, dimension or 0))
    if dimension not in (None, old[1]):
        raise InputError(
            f"vectors of {fingerprint!r} have {old[1]} dimensions in this index, not {dimension}. "
            "Another model needs another fingerprint."
        )
    return int(old[0])


def write_meta(db: Database, row: int, meta: Mapping[str, Any]) -> None:
    """The metadata of a document as the filters read it."""
    db.run("DELETE FROM document_meta WHERE document = ?", (row,))
    db.many("INSERT INTO document_meta VALUES (?, ?, ?)", ((row, *pair) for pair in meta_rows(meta)))


def meta_rows(meta: Mapping[str, Any]) -> list[tuple[str, str | int | float]]:
    """(name, value as SQLite keeps it), sorted by name in UTF-8."""
    pairs = ((name, _meta_value(value)) for name, value in meta.items())
    return sorted(pairs, key=lambda pair: pair[0].encode())


def rebuild_lexical(db: Database) -> int:
    """Write the full-text index anew from the chunks, inside a transaction; the number of rows."""
    db.run("INSERT INTO lexical(lexical) VALUES ('delete-all')")
    count = db.many(_LEXICAL_INSERT, lexical_rows(db))
    write_state(db, "lexical", lexical_signature())
    return count


def lexical_rows(db: Database) -> Iterator[tuple[int, str, str]]:
    """(row, words, heading words) of every chunk, in row order."""
    texts = TextReader(db)
    for document, title in db.rows("SELECT id, title FROM documents ORDER BY id"):
        sql = "SELECT id, start, stop, section FROM chunks WHERE document = ? ORDER BY id"
        for number, start, stop, section in db.rows(sql, (document,)):
            yield number, *lexical_form(title, json.loads(section), texts.slice(document, start, stop))


def _parts(row: int, text: str) -> Iterator[tuple[int, int, str]]:
    for part, start in enumerate(range(0, len(text), PART_CHARS)):
        yield row, part, text[start : start + PART_CHARS]


def _document_head(document: Document) -> tuple[str, str, str, int]:
    return document.id, document.source, document.title, len(document.text)


def _document_values(document: Document, decision: Mapping[str, Any] | None) -> tuple[str | None, str, str, str]:
    blocks = [[block.span.start, block.span.end, block.kind, block.level] for block in document.blocks]
    pages = [[page.number, page.span.start, page.span.end] for page in document.pages]
    why = None if decision is None else dump_json(decision)
    return why, dump_json(dict(document.meta)), dump_json(blocks), dump_json(pages)


def _chunk_values(document: int, chunk: Chunk) -> tuple[Any, ...]:
    parent = (None, None) if chunk.parent is None else (chunk.parent.start, chunk.parent.end)
    place = (document, chunk.span.start, chunk.span.end, *parent)
    names = (dump_json(chunk.section), chunk.chunker, chunk.surround)
    return (*place, chunk.token_count, bytes.fromhex(chunk.key), chunk.header, *names)


def _meta_value(value: str | int | float | bool) -> str | int | float:
    """As SQLite compares it: whole numbers beyond 64 bits become floating point in filters, never in the document."""
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else float(value)
    return value
