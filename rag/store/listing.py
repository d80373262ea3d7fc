# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""What the index holds, as lists and counts. Every function wants to be called inside `reading()`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rag.errors import UsageError
from rag.protocols import Filter
from rag.store.database import Database, understood
from rag.store.filters import compile_filter
from rag.store.read import CHUNK_TABLES, read_state
from rag.store.records import DocumentInfo, FileRecord
from rag.store.runs import count_runs
from rag.store.schema import FILE_NAME
from rag.store.sentences import SENTENCES_NAME, count_sentences

__all__ = ["count_all", "files_of", "find_document", "list_documents", "list_files", "size_bytes"]

_MIN_PREFIX = 4
_COUNTS = {
    "documents": "SELECT count(*) FROM documents",
    "chunks": "SELECT count(*) FROM chunks",
    "vectors": "SELECT count(*) FROM vectors",
    "files": "SELECT count(*) FROM files",
    "failed": "SELECT count(*) FROM files WHERE error IS NOT NULL",
    "chars": "SELECT coalesce(sum(chars), 0) FROM documents",
    "tokens": "SELECT coalesce(sum(token_count), 0) FROM chunks",
}
_EMBEDDED = (
    "SELECT count(*) FROM chunks c JOIN vectors v ON v.key = c.key "
    "AND v.fingerprint = (SELECT id FROM fingerprints WHERE name = ?)"
)


def list_files(db: Database) -> dict[str, FileRecord]:
    """All known inputs by origin."""
    sql = (
        "SELECT f.origin, f.source, f.content_hash, f.size_bytes, f.mtime_ns, f.recipe, d.doc_id, f.error "
        "FROM files f LEFT JOIN documents d ON d.id = f.document ORDER BY f.origin"
    )
    names = ("origin", "source", "content_hash", "size_bytes", "mtime_ns", "recipe", "doc_id", "error")
    return {row[0]: FileRecord(**dict(zip(names, row, strict=True))) for row in db.rows(sql)}


def files_of(db: Database, doc_id: str) -> list[FileRecord]:
    """The inputs that a document stands for, by origin."""
    sql = (
        "SELECT f.origin, f.source, f.content_hash, f.size_bytes, f.mtime_ns, f.recipe, d.doc_id, f.error "
        "FROM documents d JOIN files f ON f.document = d.id WHERE d.doc_id = ? ORDER BY f.origin"
    )
    names = ("origin", "source", "content_hash", "size_bytes", "mtime_ns", "recipe", "doc_id", "error")
    return [FileRecord(**dict(zip(names, row, strict=True))) for row in db.rows(sql, (doc_id,))]


def list_documents(db: Database, where: Filter | None) -> list[DocumentInfo]:
    """Documents in reading order; with a filter, those with a chunk that matches."""
    origins: dict[int, list[str]] = {}
    for origin, row in db.rows("SELECT origin, document FROM files ORDER BY origin"):
        origins.setdefault(row, []).append(origin)
    condition, values = compile_filter(where)
    match = f"WHERE d.id IN (SELECT c.document FROM {CHUNK_TABLES} WHERE {condition})" if where else ""
    sql = (
        "SELECT d.id, d.doc_id, d.source, d.title, d.chars, d.decision, "
        f"(SELECT count(*) FROM chunks c WHERE c.document = d.id) FROM documents d {match} ORDER BY d.id"
    )
    with understood(db.path):
        return [
            DocumentInfo(
                id=doc_id,
                source=source,
                title=title,
                origins=tuple(origins.get(row, ())),
                chunks=chunks,
                chars=chars,
                decision=None if decision is None else json.loads(decision),
            )
            for row, doc_id, source, title, chars, decision, chunks in db.rows(sql, values if where else ())
        ]


def find_document(db: Database, name: str) -> str:
    """The id of the one document with this id, beginning of an id, source or origin; UsageError otherwise."""
    sql = (
        "SELECT DISTINCT d.doc_id, d.source FROM documents d LEFT JOIN files f ON f.document = d.id "
        "WHERE d.doc_id = ?1 OR d.source = ?1 OR f.origin = ?1 "
        "OR (length(?1) >= ?2 AND substr(d.doc_id, 1, length(?1)) = ?1) ORDER BY d.id LIMIT 10"
    )
    found = db.rows(sql, (name.encode("utf-8", "replace").decode(), _MIN_PREFIX))
    if len(found) == 1:
        return str(found[0][0])
    if not found:
        raise UsageError(
            f"no document {name!r} in {db.path.parent}; give an id, the first {_MIN_PREFIX} or more digits of one, "
            "or a source name"
        )
    several = ", ".join(f"{doc_id} ({source})" for doc_id, source in found)
    raise UsageError(f"{name!r} fits several documents: {several}. Give the id.")


def count_all(db: Database) -> dict[str, Any]:
    """Counts of everything, and the size on disk."""
    fingerprint = read_state(db, "manifest").get("fingerprint")
    counts = {name: db.value(sql) for name, sql in _COUNTS.items()}
    counts["embedded"] = db.value(_EMBEDDED, (fingerprint,))
    counts["runs"] = count_runs(db.path.parent)
    counts["sentences"] = count_sentences(db.path.parent)
    size, generation = size_bytes(db.path.parent), read_state(db, "generation")
    return {**counts, "bytes": size, "generation": generation, "fingerprint": fingerprint}


def size_bytes(directory: Path) -> int:
    """Size of the database, its log, the derived files and the kept vectors of sentences."""
    names = (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", SENTENCES_NAME)
    paths = [*(directory / name for name in names), *(directory / "derived").glob("*")]
    return sum(path.stat().st_size for path in paths if path.is_file())
