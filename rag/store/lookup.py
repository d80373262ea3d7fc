# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""What ingestion asks about a few files at a time, so that it never holds the records of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from rag.store.database import Database, batches, marks
from rag.store.records import FileRecord

__all__ = ["find_files", "find_owners", "find_place", "list_origins"]

_NAMES = ("origin", "source", "content_hash", "size_bytes", "mtime_ns", "recipe", "doc_id", "error")
_RECORD = (
    "SELECT f.origin, f.source, f.content_hash, f.size_bytes, f.mtime_ns, f.recipe, d.doc_id, f.error "
    "FROM files f LEFT JOIN documents d ON d.id = f.document"
)


def find_files(db: Database, origins: Sequence[str]) -> dict[str, FileRecord]:
    """The records of those origins that are known."""
    found: dict[str, FileRecord] = {}
    for part in batches(list(origins)):
        rows = db.rows(f"{_RECORD} WHERE f.origin IN ({marks(part)})", part)
        found.update((row[0], FileRecord(**dict(zip(_NAMES, row, strict=True)))) for row in rows)
    return found


def find_owners(db: Database, sources: Sequence[str]) -> dict[str, str]:
    """Source -> the origin that has this name in the index."""
    found: dict[str, str] = {}
    for part in batches(list(sources)):
        sql = f"SELECT source, origin FROM files WHERE source IN ({marks(part)}) ORDER BY origin DESC"
        found.update((source, origin) for source, origin in db.rows(sql, part))
    return found


def find_place(db: Database, doc_id: str) -> tuple[str, tuple[str, ...]] | None:
    """(source, origins) of a document; None when there is no such document."""
    source = db.value("SELECT source FROM documents WHERE doc_id = ?", (doc_id,))
    if source is None:
        return None
    sql = "SELECT f.origin FROM files f JOIN documents d ON d.id = f.document WHERE d.doc_id = ? ORDER BY f.origin"
    return source, tuple(origin for (origin,) in db.rows(sql, (doc_id,)))


def list_origins(db: Database) -> list[str]:
    """The origins of all known files, sorted."""
    return [origin for (origin,) in db.rows("SELECT origin FROM files ORDER BY origin")]
