# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Does the index agree with itself, row by row? Problems are reported, never raised."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import RagError
from rag.store.database import Database
from rag.store.derived import matches
from rag.store.read import read_document, read_state
from rag.store.schema import LEXICAL
from rag.store.store import Store
from rag.store.write import lexical_rows
from rag.types import content_key

__all__ = ["VerifyReport", "verify"]

_MAX_PER_CHECK = 20


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """`checked` counts what was looked at, by kind; `problems` is empty exactly when `ok`."""

    checked: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag verify --json` prints."""
        return {"ok": self.ok, "checked": dict(self.checked), "problems": list(self.problems)}


Check = Callable[[Database, dict[str, int]], Iterator[str]]


def verify(store: Store | Path) -> VerifyReport:
    """Check a whole index, on one snapshot; a directory that cannot even be opened gives a report too.

    Cost: reads everything once and builds the full-text index a second time, in temporary space.
    """
    report = VerifyReport()
    directory = store.directory if isinstance(store, Store) else Path(store)
    try:
        db = Database(directory, writable=False)
    except RagError as error:
        report.problems.append(str(error))
        return report
    try:
        with db.reading():
            for check in _CHECKS:
                report.problems.extend(_guarded(check, db, report.checked))
    except (RagError, sqlite3.Error) as error:
        report.problems.append(str(error))
    finally:
        db.close()
    return report


def _guarded(check: Check, db: Database, checked: dict[str, int]) -> list[str]:
    """The problems that a check finds; its own failure is one of them."""
    found: list[str] = []
    count = 0
    try:
        for problem in check(db, checked):
            count += 1
            if count <= _MAX_PER_CHECK:
                found.append(problem)
    except (RagError, sqlite3.Error, OSError, ValueError, TypeError, KeyError, IndexError) as error:
        found.append(f"{check.__name__.strip('_').replace('_', ' ')}: {error}")
    if count > _MAX_PER_CHECK:
        found.append(f"and {count - _MAX_PER_CHECK} more of this kind")
    return found


def _database_pages(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["pages"] = db.value("PRAGMA page_count")
    size, page = db.path.stat().st_size, db.value("PRAGMA page_size")
    if size % page:  # SQLite itself fills a short last page with zeros
        yield f"{db.path.name} ends inside a page: {size} bytes are no multiple of {page}"
    for (line,) in db.rows("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"{db.path.name}: {line}"
    for table, row, parent, _ in db.rows("PRAGMA foreign_key_check"):
        yield f"row {row} of table {table} points to a missing row of {parent}"


def _documents_and_chunks(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["documents"] = checked["chunks"] = 0
    for row, doc_id, chars in db.rows("SELECT id, doc_id, chars FROM documents ORDER BY id"):
        checked["documents"] += 1
        try:
            document = read_document(db, doc_id)
        except (RagError, ValueError, TypeError) as error:
            yield f"document {doc_id} cannot be read: {error}"
            continue
        if document.id != doc_id or len(document.text) != chars:
            yield f"document {doc_id} ({document.source}): its text is not the one that was committed"
        yield from _chunks_of(db, checked, row, doc_id, document.text)
        if db.value("SELECT 1 FROM files WHERE document = ?", (row,)) is None:
            yield f"document {doc_id} belongs to no file"


def _chunks_of(db: Database, checked: dict[str, int], row: int, doc_id: str, text: str) -> Iterator[str]:
    sql = "SELECT start, stop, header, key FROM chunks WHERE document = ? ORDER BY id"
    before = (-1, -1)
    for start, stop, header, key in db.rows(sql, (row,)):
        checked["chunks"] += 1
        name = f"chunk {doc_id}:{start}-{stop}"
        if not 0 <= start < stop <= len(text):
            yield f"{name} lies outside of its document with {len(text)} characters"
        elif content_key(header, text[start:stop]) != key.hex():
            yield f"{name}: the document's text at its span is not the text that was chunked"
        if (start, stop) < before:
            yield f"{name} is out of reading order"
        before = (start, stop)


def _vectors(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["vectors"] = db.value("SELECT count(*) FROM vectors")
    sql = (
        "SELECT hex(v.key), f.name FROM vectors v LEFT JOIN fingerprints f ON f.id = v.fingerprint "
        "WHERE NOT EXISTS (SELECT 1 FROM chunks c WHERE c.key = v.key)"
    )
    for key, name in db.rows(sql):
        yield f"vector {key.lower()} of {name!r} belongs to no chunk"
    sql = (
        "SELECT hex(v.key), f.name, length(v.vector), f.dimension FROM vectors v "
        "JOIN fingerprints f ON f.id = v.fingerprint WHERE length(v.vector) <> 4 * f.dimension"
    )
    for key, name, size, dimension in db.rows(sql):
        yield f"vector {key.lower()} of {name!r} has {size} bytes instead of {4 * dimension}"
    sql = "SELECT hex(v.key), f.name, v.vector, v.crc FROM vectors v JOIN fingerprints f ON f.id = v.fingerprint"
    for key, name, vector, crc in db.stream(sql):
        if zlib.crc32(vector) != crc:
            yield f"vector {key.lower()} of {name!r} is not the one that was committed"
    fingerprint = read_state(db, "manifest").get("fingerprint")
    if fingerprint is None:
        return
    sql = (
        "SELECT d.doc_id, c.start, c.stop FROM chunks c JOIN documents d ON d.id = c.document WHERE NOT EXISTS "
        "(SELECT 1 FROM vectors v JOIN fingerprints f ON f.id = v.fingerprint WHERE f.name = ? AND v.key = c.key)"
    )
    for doc_id, start, stop in db.rows(sql, (fingerprint,)):
        yield f"chunk {doc_id}:{start}-{stop} has no vector of {fingerprint!r}"


def _lexical_rows(db: Database, checked: dict[str, int]) -> Iterator[str]:
    """Every chunk has its row with the right lengths, and every term its counts, as in an index built anew."""
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
    db.run("CREATE VIRTUAL TABLE temp.terms_now USING fts5vocab(main, lexical, col)")
    db.run("CREATE VIRTUAL TABLE temp.terms_fresh USING fts5vocab(temp, fresh, col)")
    checked["terms"] = db.value("SELECT count(DISTINCT term) FROM terms_now")
    for a, b in (("terms_now", "terms_fresh"), ("terms_fresh", "terms_now")):
        sql = f"SELECT DISTINCT term FROM (SELECT * FROM {a} EXCEPT SELECT * FROM {b})"
        for (term,) in db.rows(sql):
            yield f"the word {term!r} has wrong counts in the full-text index"


def _derived_files(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["derived"] = 0
    for name, file, digest, size in db.rows("SELECT name, file, checksum, bytes FROM derived ORDER BY name"):
        checked["derived"] += 1
        if not matches(db.path.parent / "derived" / file, digest, size):
            yield f"derived file {name} ({file}) is missing or damaged; it is rebuilt when it is next needed"


def _state(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["files"] = db.value("SELECT count(*) FROM files")
    if not isinstance(read_state(db, "generation"), int):
        yield "the generation is not a number"


_CHECKS: tuple[Check, ...] = (
    _database_pages,
    _state,
    _documents_and_chunks,
    _vectors,
    _lexical_rows,
    _derived_files,
)
