# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Makes the rows of a readable index file agree with each other and with their checksums, in one transaction."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rag.errors import RagError
from rag.store.database import Database, Row
from rag.store.derived import matches
from rag.store.problems import count_unembedded, document_problems, lexical_problems, meta_differs
from rag.store.read import read_document, read_state
from rag.store.schema import LEXICAL
from rag.store.signatures import band_problems, is_sound, write_signature
from rag.store.write import chunks_crc, rebuild_lexical, write_meta, write_state
from rag.types import Document

__all__ = ["Cured", "Removed", "cure"]


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A document, or a file without one, that could not be kept. Its files are read again by the next ingestion."""

    source: str
    origins: tuple[str, ...]
    why: str


@dataclass(kw_only=True)
class Cured:
    """What was done; see rag.store.repair.RepairReport."""

    fixed: list[str] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)
    uncut: list[str] = field(default_factory=list)
    unembedded: int = 0
    chunks_changed: bool = False

    def note(self, count: int, what: str) -> None:
        """A line for `count` rows, none for 0."""
        if count:
            self.fixed.append(f"{count} {what}")


def cure(db: Database) -> Cured:
    """Drop or mend whatever `verify` would report. Vectors that go are for somebody with an embedder to make again."""
    done = Cured()
    lexical_is_bad = _lexical_is_bad(db)
    db.run("PRAGMA foreign_keys=OFF")
    try:
        with db.writing():
            _state(db, done)
            _orphans(db, done)
            _documents(db, done)
            _vectors(db, done)
            done.unembedded = count_unembedded(db)
            _signatures(db, done)
            _derived(db, done)
            _orphans(db, done)
            if lexical_is_bad or done.chunks_changed:
                db.run("DROP TABLE lexical")
                db.run(f"CREATE VIRTUAL TABLE lexical USING {LEXICAL}")
                done.fixed.append(f"the full-text index was built anew: {rebuild_lexical(db)} chunks")
            if done.chunks_changed or done.fixed:
                write_state(db, "generation", read_state(db, "generation") + 1)
    finally:
        db.run("PRAGMA foreign_keys=ON")
    return done


def _lexical_is_bad(db: Database) -> bool:
    reader = Database(db.path.parent, writable=False)
    try:
        with reader.reading():
            return next(lexical_problems(reader, {}), None) is not None
    except (RagError, ValueError, TypeError, KeyError, IndexError):
        return True
    finally:
        reader.close()


def _state(db: Database, done: Cured) -> None:
    held: dict[str, str] = dict(db.rows("SELECT name, value FROM state"))
    generation = _parsed(held.get("generation"))
    if not isinstance(generation, int):
        newest = db.value("SELECT coalesce(max(generation), 0) FROM derived") or 0
        write_state(db, "generation", newest + 1)
        done.fixed.append("the generation was unreadable and was set anew")
    if _parsed(held.get("lexical")) is None:
        write_state(db, "lexical", "")
    if not isinstance(_parsed(held.get("manifest")), dict):
        names = db.rows(
            "SELECT f.name, f.dimension FROM fingerprints f "
            "ORDER BY (SELECT count(*) FROM vectors v WHERE v.fingerprint = f.id) DESC LIMIT 1"
        )
        manifest = {"fingerprint": names[0][0], "dimension": names[0][1]} if names else {}
        write_state(db, "manifest", manifest)
        done.fixed.append(
            "the manifest was unreadable and holds now only the name of the vectors: the next ingestion, or "
            "`rag repair --config FILE`, writes the config into it"
        )


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None


def _orphans(db: Database, done: Cured) -> None:
    """Rows whose document is gone. A file among them is named, since it is to be read again."""
    gone = "NOT IN (SELECT id FROM documents)"
    for origin, source, error in db.rows(
        f"SELECT origin, source, error FROM files WHERE document IS NOT NULL AND document {gone}"
    ):
        if error is None:
            db.run("DELETE FROM files WHERE origin = ?", (origin,))
            done.removed.append(Removed(source=source, origins=(origin,), why="its document is gone"))
        else:
            db.run("UPDATE files SET document = NULL WHERE origin = ?", (origin,))
            done.removed.append(Removed(source=source, origins=(origin,), why="its last good version is gone"))
    for table in ("chunks", "document_texts", "document_meta", "signatures", "signature_bands"):
        count = db.many(f"DELETE FROM {table} WHERE document {gone}", [()])
        done.note(count, f"rows of {table} belonged to no document and were dropped")
        done.chunks_changed = done.chunks_changed or (table == "chunks" and count > 0)


def _documents(db: Database, done: Cured) -> None:
    for (row,) in db.rows("SELECT id FROM documents ORDER BY id"):
        names = db.one("SELECT CAST(doc_id AS BLOB), CAST(source AS BLOB) FROM documents WHERE id = ?", (row,)) or ()
        doc_id, source = (bytes(name or b"").decode("utf-8", "replace") for name in names)
        problems = document_problems(db, row)
        if problems.document:
            _remove(db, done, row, str(source), problems.document[0])
            continue
        document = read_document(db, doc_id)
        if problems.chunks:
            _uncut(db, done, row, doc_id)
        if meta_differs(db, row, document):
            write_meta(db, row, document.meta)
            done.fixed.append(f"{source}: the metadata that filters read was written anew")
        if db.value("SELECT 1 FROM files WHERE document = ? LIMIT 1", (row,)) is None:
            _adopt(db, done, row, document)


def _remove(db: Database, done: Cured, row: int, source: str, why: str) -> None:
    origins = tuple(origin for (origin,) in db.rows("SELECT origin FROM files WHERE document = ?", (row,)))
    for table in ("files", "chunks", "document_texts", "document_meta", "signatures", "signature_bands"):
        db.run(f"DELETE FROM {table} WHERE document = ?", (row,))
    db.run("DELETE FROM documents WHERE id = ?", (row,))
    done.removed.append(Removed(source=source, origins=origins, why=why))
    done.chunks_changed = True


def _uncut(db: Database, done: Cured, row: int, doc_id: str) -> None:
    """Keep the text, which is sound, without chunks. Its files get no recipe, so that ingestion reads them again."""
    db.run("DELETE FROM chunks WHERE document = ?", (row,))
    db.run("UPDATE documents SET chunks_crc = ? WHERE id = ?", (chunks_crc([]), row))
    db.run("UPDATE files SET recipe = '' WHERE document = ?", (row,))
    done.uncut.append(doc_id)
    done.chunks_changed = True


def _adopt(db: Database, done: Cured, row: int, document: Document) -> None:
    """A sound document that no file stands for: it is kept under its name, until its file is ingested again."""
    db.run(
        "INSERT OR REPLACE INTO files(origin, source, content_hash, size_bytes, mtime_ns, recipe, document, error) "
        "VALUES (?, ?, '', 0, 0, '', ?, NULL)",
        (f"lost-and-found:{document.id}", document.source, row),
    )
    done.fixed.append(f"{document.source} belonged to no file; it is kept, and its file is read again when ingested")


def _vectors(db: Database, done: Cured) -> None:
    bad = list(_bad_checksums(db))
    db.many("DELETE FROM vectors WHERE id = ?", bad)
    done.note(len(bad), "vectors were not what was committed and were dropped")
    for number, name, dimension in db.rows("SELECT id, name, dimension FROM fingerprints"):
        sizes = db.rows(
            "SELECT length(vector), count(*) FROM vectors WHERE fingerprint = ? GROUP BY 1 ORDER BY 2 DESC", (number,)
        )
        if sizes and sizes[0][0] != 4 * dimension:
            db.run("UPDATE fingerprints SET dimension = ? WHERE id = ?", (sizes[0][0] // 4, number))
            done.fixed.append(f"the dimension of {name!r} is {sizes[0][0] // 4} by its vectors, not {dimension}")
    sql = (
        "DELETE FROM vectors WHERE fingerprint NOT IN (SELECT id FROM fingerprints) OR length(vector) <> 4 * "
        "(SELECT dimension FROM fingerprints f WHERE f.id = vectors.fingerprint)"
    )
    done.note(db.many(sql, [()]), "vectors had a wrong length or an unknown embedder and were dropped")
    sql = "DELETE FROM vectors WHERE NOT EXISTS (SELECT 1 FROM chunks c WHERE c.key = vectors.key)"
    done.note(db.many(sql, [()]), "vectors belonged to no chunk and were dropped")


def _bad_checksums(db: Database) -> Iterator[tuple[int]]:
    for row, vector, crc in db.stream("SELECT id, vector, crc FROM vectors"):
        if not isinstance(vector, bytes) or zlib.crc32(vector) != crc:
            yield (row,)


def _signatures(db: Database, done: Cured) -> None:
    rows: list[Row] = db.rows("SELECT document, signature, crc FROM signatures")
    bad = [(row,) for row, signature, crc in rows if not is_sound(signature, crc)]
    db.many("DELETE FROM signatures WHERE document = ?", bad)
    done.note(len(bad), "signatures of near-duplicates were not what was committed and were dropped")
    bare = list(band_problems(db))
    db.many("DELETE FROM signature_bands WHERE document = ?", ((row,) for row in bare))
    for row in bare:
        if signature := db.value("SELECT signature FROM signatures WHERE document = ?", (row,)):
            write_signature(db, row, signature)
    done.note(len(bare), "documents had other bands than those of their signature; they were written anew")


def _derived(db: Database, done: Cured) -> None:
    for name, file, digest, size in db.rows("SELECT name, file, checksum, bytes FROM derived"):
        if not matches(db.path.parent / "derived" / file, digest, size):
            db.run("DELETE FROM derived WHERE name = ?", (name,))
            done.fixed.append(f"derived file {name} was missing or damaged; it is made again when it is next needed")
