# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""`rag.protocols.Corpus` over one snapshot of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, IndexDamagedError
from rag.protocols import Corpus, Filter
from rag.store.database import Database, batches, marks
from rag.store.derived import DerivedFiles
from rag.store.filters import compile_filter, names_documents_only
from rag.store.lexical import LexicalIndex
from rag.store.read import (
    CHUNK_TABLES,
    TextReader,
    chunk_row,
    document_row,
    read_chunks,
    read_state,
    sound_document,
)
from rag.store.sentences import SentenceFile
from rag.text import lexical_words
from rag.types import Chunk, Document, parse_chunk_id

if TYPE_CHECKING:
    from rag.protocols import Embedder, Rows, Vectors

__all__ = ["StoreCorpus"]

_KEPT_DOCUMENTS = 8


class StoreCorpus(Corpus):
    """A view that no later commit changes; a context manager, or close it yourself.

    It has a connection of its own and may be used from several threads. While it is open, the log of the index
    cannot shrink, so a long-lived server should open a new view now and then.
    """

    def __init__(self, directory: Path, derived: DerivedFiles) -> None:
        self.directory = directory
        self._derived = derived
        self._db = Database(directory, writable=False)
        self._db.begin_snapshot()
        self._texts = TextReader(self._db)
        self._documents: dict[str, Document] = {}
        self.generation: int = read_state(self._db, "generation")
        self._count: int = self._db.value("SELECT count(*) FROM chunks")
        self._lexical = LexicalIndex(self._db, self._count)
        self._fingerprint: str | None = read_state(self._db, "manifest").get("fingerprint")

    def __enter__(self) -> StoreCorpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Let go of the snapshot; calling twice is fine."""
        self._db.close()

    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        return read_chunks(self._db, self._texts, rows)

    def rows(self, where: Filter | None = None) -> Rows:
        import numpy as np

        sql, values = _rows_sql(where)
        # One text of a million numbers costs a quarter of a million result rows.
        text = self._db.value(f"SELECT group_concat(id) FROM ({sql})", values)
        rows = np.fromstring(text, dtype=np.int64, sep=",") if text else np.empty(0, dtype=np.int64)
        rows.sort()
        return rows

    def rows_of(self, chunk_ids: Sequence[str]) -> list[int]:
        places = [_place(chunk_id) for chunk_id in chunk_ids]
        found: dict[tuple[str, int, int], int] = {}
        for part in batches(places):
            # CROSS JOIN fixes the order: from each wanted place through the two unique indexes.
            sql = (
                f"WITH wanted(doc_id, start, stop) AS (VALUES {','.join(['(?, ?, ?)'] * len(part))}) "
                "SELECT w.doc_id, w.start, w.stop, c.id FROM wanted w CROSS JOIN documents d ON d.doc_id = w.doc_id "
                "CROSS JOIN chunks c ON c.document = d.id AND c.start = w.start AND c.stop = w.stop"
            )
            rows = self._db.rows(sql, [value for place in part for value in place])
            found.update(((doc_id, start, stop), row) for doc_id, start, stop, row in rows)
        for chunk_id, place in zip(chunk_ids, places, strict=True):
            if place not in found:
                raise KeyError(chunk_id)
        return [found[place] for place in places]

    def vectors(self, rows: Sequence[int] | None = None) -> tuple[Rows, Vectors]:
        import numpy as np

        number, dimension = self._fingerprint_row()
        join = "chunks c LEFT JOIN vectors v ON v.fingerprint = ? AND v.key = c.key"
        if rows is None:
            sql = f"SELECT c.id, v.vector FROM {join} ORDER BY c.id"
            return self._matrix([(sql, (number,))], self._count, dimension)
        queries: list[tuple[str, Sequence[Any]]] = []
        wanted = np.asarray(rows, dtype=np.int64)
        unique = np.unique(wanted)
        for part in batches(unique.tolist()):
            sql = f"SELECT c.id, v.vector FROM {join} WHERE c.id IN ({marks(part)}) ORDER BY c.id"
            queries.append((sql, (number, *part)))
        found, matrix = self._matrix(queries, len(unique), dimension)
        if np.array_equal(found, wanted):
            return wanted, matrix  # asked for in order: nothing to copy
        at = np.searchsorted(found, wanted)
        known = at < len(found)
        known[known] = found[at[known]] == wanted[known]
        if not known.all():
            raise KeyError(int(wanted[~known][0]))
        return wanted, matrix[at]

    def vector_parts(self, size: int) -> Iterator[tuple[Rows, Vectors]]:
        number, dimension = self._fingerprint_row()
        last = -1
        for _ in range(0, self._count, size):
            sql = (
                "SELECT c.id, v.vector FROM chunks c LEFT JOIN vectors v ON v.fingerprint = ? AND v.key = c.key "
                "WHERE c.id > ? ORDER BY c.id LIMIT ?"
            )
            rows, matrix = self._matrix([(sql, (number, last, size))], min(size, self._count), dimension)
            last = int(rows[-1])
            yield rows, matrix

    def _fingerprint_row(self) -> tuple[int, int]:
        if self._fingerprint is None:
            raise ConfigError(
                f"{self.directory} has no vectors: it was built without an embedder. "
                "Choose a lexical retriever (bm25), or run `rag ingest` with an embedder."
            )
        sql = "SELECT id, dimension FROM fingerprints WHERE name = ?"
        row = self._db.one(sql, (self._fingerprint,))
        return (-1, 0) if row is None else (int(row[0]), int(row[1]))

    def _matrix(self, queries: list[tuple[str, Sequence[Any]]], count: int, dimension: int) -> tuple[Rows, Vectors]:
        """The blobs in one matrix, copied as bytes; fewer rows than `count` when some rows are unknown."""
        import numpy as np

        rows = np.empty(count, dtype=np.int64)
        width, done = 4 * dimension, 0
        view = memoryview(bytearray(count * width))
        for sql, values in queries:
            for row, blob in self._db.stream(sql, values):
                if blob is None or len(blob) != width:
                    raise IndexDamagedError(
                        f"{self.directory}: chunk row {row} has no vector of {self._fingerprint!r}. "
                        "Run `rag ingest` again to embed what is missing, or `rag verify` for the details."
                    )
                rows[done] = row
                view[done * width : (done + 1) * width] = blob
                done += 1
        matrix = np.frombuffer(view, dtype="<f4").reshape(count, dimension)
        return rows[:done], matrix[:done].astype(np.float32, copy=False)

    def lexical(self, words: Sequence[str], k: int, where: Filter | None = None) -> list[tuple[int, float]]:
        distinct = dict.fromkeys(word for text in words for word in lexical_words(text))
        if not distinct or k <= 0:
            return []
        allowed, values = _rows_sql(where) if where else ("", [])
        return self._lexical.search(list(distinct), k, allowed, values)

    def neighbours(self, chunk_id: str, before: int, after: int) -> list[Chunk]:
        row = chunk_row(self._db, chunk_id)
        same = "SELECT id FROM chunks WHERE document = (SELECT document FROM chunks WHERE id = ?)"
        left = self._db.rows(f"{same} AND id < ? ORDER BY id DESC LIMIT ?", (row, row, max(0, before)))
        right = self._db.rows(f"{same} AND id > ? ORDER BY id LIMIT ?", (row, row, max(0, after)))
        return self.chunks([number for (number,) in (*reversed(left), *right)])

    def document(self, doc_id: str) -> Document:
        found = self._documents.get(doc_id)  # one look: another thread may empty the memory meanwhile
        if found is None:
            if len(self._documents) >= _KEPT_DOCUMENTS:
                self._documents.clear()
            found = self._documents[doc_id] = sound_document(self._db, doc_id)
        return found

    def source(self, doc_id: str) -> str:
        """The source name alone, without reading the text; KeyError for an unknown id."""
        return str(self._db.value("SELECT source FROM documents WHERE id = ?", (document_row(self._db, doc_id),)))

    def derived(self, name: str) -> Path | None:
        return self._derived.find(name, self.generation)

    def derived_of_any(self, name: str) -> Path | None:
        return self._derived.find(name, None)

    def sentence_vectors(self, texts: Sequence[str], embedder: Embedder) -> Vectors:
        return SentenceFile(self.directory, embedder).vectors(texts)

    def publish(self, name: str, write: Callable[[Path], None]) -> Path | None:
        return self._derived.publish(name, self.generation, write)


def _place(chunk_id: str) -> tuple[str, int, int]:
    """(document id, start, stop); KeyError for what is no chunk id."""
    try:
        doc_id, span = parse_chunk_id(chunk_id)
    except ValueError:
        raise KeyError(chunk_id) from None
    return doc_id, span.start, span.end


def _rows_sql(where: Filter | None) -> tuple[str, list[Any]]:
    """(query of column `id`: the rows that match, in any order; its values)."""
    condition, values = compile_filter(where)
    if not where:
        return "SELECT id FROM chunks", []
    # CROSS JOIN fixes the order: each document is asked once, not each of its chunks.
    by_document = "documents d CROSS JOIN chunks c ON c.document = d.id"
    tables = by_document if names_documents_only(where) else CHUNK_TABLES
    return f"SELECT c.id AS id FROM {tables} WHERE {condition}", values
