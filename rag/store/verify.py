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
from rag.store.kv import check_kv, count_kv
from rag.store.problems import document_problems, lexical_problems, meta_differs
from rag.store.read import read_document, read_state
from rag.store.runs import check_runs, count_runs
from rag.store.schema import OBJECTS, missing_names
from rag.store.sentences import check_sentences, count_sentences
from rag.store.signatures import band_problems, is_sound
from rag.store.snapshots import check_snapshot, list_snapshots
from rag.store.store import Store

__all__ = ["VerifyReport", "verify"]

_MAX_PER_CHECK = 20


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """`checked` counts what was looked at, by kind; `problems` is empty exactly when `ok`; `notes` says what could
    not be looked at."""

    checked: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag verify --json` prints."""
        return {
            "ok": self.ok,
            "checked": dict(self.checked),
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


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
        _beside(directory, report)
    except OSError as error:
        report.problems.append(f"{directory}: {error}")
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
    log = Path(f"{db.path}-wal")  # a checkpoint that died may leave half a page, which is whole in the log
    if size % page and not (log.exists() and log.stat().st_size):  # SQLite itself fills a short last page with zeros
        yield f"{db.path.name} ends inside a page: {size} bytes are no multiple of {page}"
    for name in missing_names(db.rows(OBJECTS)):
        yield f"{db.path.name} has no {name}"
    for (line,) in db.rows("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"{db.path.name}: {line}"
    for table, row, parent, _ in db.rows("PRAGMA foreign_key_check"):
        yield f"row {row} of table {table} points to a missing row of {parent}"


def _documents_and_chunks(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["documents"] = checked["chunks"] = 0
    for row, doc_id in db.rows("SELECT id, doc_id FROM documents ORDER BY id"):
        checked["documents"] += 1
        found = document_problems(db, row)
        checked["chunks"] += found.count
        yield from found.document
        yield from found.chunks
        if not found.document and meta_differs(db, row, read_document(db, doc_id)):
            yield f"document {doc_id}: the metadata that filters read is not the document's"
        if db.value("SELECT 1 FROM files WHERE document = ?", (row,)) is None:
            yield f"document {doc_id} belongs to no file"


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


def _signatures(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["signatures"] = 0
    for row, signature, crc in db.stream("SELECT document, signature, crc FROM signatures"):
        checked["signatures"] += 1
        if not is_sound(signature, crc):
            yield f"the signature of document row {row} is not the one that was committed"
    for row in band_problems(db):
        yield f"the bands of document row {row} are not those of its signature"


def _full_text(db: Database, checked: dict[str, int]) -> Iterator[str]:
    yield from lexical_problems(db, checked)


def _derived_files(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["derived"] = 0
    for name, file, digest, size in db.rows("SELECT name, file, checksum, bytes FROM derived ORDER BY name"):
        checked["derived"] += 1
        if not matches(db.path.parent / "derived" / file, digest, size):
            yield f"derived file {name} ({file}) is missing or damaged; it is rebuilt when it is next needed"


def _state(db: Database, checked: dict[str, int]) -> Iterator[str]:
    checked["files"] = 0
    for origin, source, name, error, *_ in db.stream(
        "SELECT f.origin, f.source, d.source, f.error, f.content_hash, f.recipe FROM files f "
        "LEFT JOIN documents d ON d.id = f.document"
    ):
        checked["files"] += 1
        if error is None and source != name:
            yield f"file {origin} is named {source!r}, and its document {name!r}"
    generation, manifest = read_state(db, "generation"), read_state(db, "manifest")
    if not isinstance(generation, int):
        yield "the generation is not a number"
    elif generation < (db.value("SELECT max(generation) FROM derived") or 0):
        yield "the generation is older than that of a derived file"
    if not isinstance(manifest, dict):
        yield "the manifest is no mapping"
    if not isinstance(read_state(db, "lexical"), str):
        yield "the rules of the full-text index are not named"
    last: dict[str, int] = dict(db.rows("SELECT name, seq FROM sqlite_sequence"))
    for table, sql in (("documents", "SELECT max(id) FROM documents"), ("chunks", "SELECT max(id) FROM chunks")):
        if last.get(table, 0) < (db.value(sql) or 0):
            yield f"the counter of {table} is below their last row"


def _beside(directory: Path, report: VerifyReport) -> None:
    """What lies beside the index file: the traces, the vectors of sentences, keys and values, and the snapshots."""
    report.checked["runs"] = count_runs(directory)
    report.problems.extend(check_runs(directory))
    report.checked["sentences"] = count_sentences(directory)
    report.problems.extend(check_sentences(directory))
    report.checked["kv"] = count_kv(directory)
    report.problems.extend(check_kv(directory))
    report.checked["snapshots"] = 0
    for info in list_snapshots(directory):
        report.checked["snapshots"] += 1
        if not check_snapshot(info.path):
            report.problems.append(f"snapshot {info.name} ({info.path.name}) is not what was written")


_CHECKS: tuple[Check, ...] = (
    _database_pages,
    _state,
    _documents_and_chunks,
    _vectors,
    _signatures,
    _full_text,
    _derived_files,
)
