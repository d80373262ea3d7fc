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
from rag.store.filters import compile_filter
from rag.store.read import CHUNK_TABLES, TextReader, chunk_row, document_row, read_chunks, read_document, read_state
from rag.text import lexical_words
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.protocols import Rows, Vectors

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

        condition, values = compile_filter(where)
        sql = f"SELECT c.id FROM {CHUNK_TABLES} WHERE {condition} ORDER BY c.id"
        return np.array([row for (row,) in self._db.rows(sql, values)], dtype=np.int64)

    def rows_of(self, chunk_ids: Sequence[str]) -> list[int]:
        return [chunk_row(self._db, chunk_id) for chunk_id in chunk_ids]

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
        query = " OR ".join(f'"{word}"' for word in distinct)
        tables, condition, values = "lexical", "1", list[Any]()
        if where:
            # CROSS JOIN fixes the order: the full-text index first, then the filter, row by row.
            tables = "lexical CROSS JOIN chunks c ON c.id = lexical.rowid CROSS JOIN documents d ON d.id = c.document"
            condition, values = compile_filter(where)
        rows = self._db.rows(
            f"SELECT lexical.rowid, bm25(lexical) AS score FROM {tables} "
            f"WHERE lexical MATCH ? AND {condition} ORDER BY score, lexical.rowid LIMIT ?",
            (query, *values, k),
        )
        return [(row, -score) for row, score in rows]

    def neighbours(self, chunk_id: str, before: int, after: int) -> list[Chunk]:
        row = chunk_row(self._db, chunk_id)
        same = "SELECT id FROM chunks WHERE document = (SELECT document FROM chunks WHERE id = ?)"
        left = self._db.rows(f"{same} AND id < ? ORDER BY id DESC LIMIT ?", (row, row, max(0, before)))
        right = self._db.rows(f"{same} AND id > ? ORDER BY id LIMIT ?", (row, row, max(0, after)))
        return self.chunks([number for (number,) in (*reversed(left), *right)])

    def document(self, doc_id: str) -> Document:
        if doc_id not in self._documents:
            if len(self._documents) >= _KEPT_DOCUMENTS:
                self._documents.clear()
            self._documents[doc_id] = read_document(self._db, doc_id)
        return self._documents[doc_id]

    def source(self, doc_id: str) -> str:
        """The source name alone, without reading the text; KeyError for an unknown id."""
        return str(self._db.value("SELECT source FROM documents WHERE id = ?", (document_row(self._db, doc_id),)))

    def derived(self, name: str) -> Path | None:
        return self._derived.find(name, self.generation)

    def derived_of_any(self, name: str) -> Path | None:
        return self._derived.find(name, None)

    def publish(self, name: str, write: Callable[[Path], None]) -> Path | None:
        return self._derived.publish(name, self.generation, write)
