"""Entries for store tests: documents cut into windows, with vectors that depend on the chunk key alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from rag.store import Entry, FileRecord, Store
from rag.store.database import Database
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Span

FINGERPRINT = "fake-4"
COUNTER = WordCounter()


def vector(key: str) -> np.ndarray:
    """A unit vector of 4 dimensions."""
    raw = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=16).digest(), dtype="<u4").astype(np.float32)
    return raw / np.linalg.norm(raw)


def make_entry(text: str, source: str = "a.md", **options: Any) -> Entry:
    """`options`: origin, window, overlap, recipe, fingerprint (None: no vectors), decision, and fields of Document.

    `around`: how many characters on each side the vector of a chunk is read with.
    """
    around = options.pop("around", 0)
    origin = options.pop("origin", f"/docs/{source}")
    window, overlap = options.pop("window", 40), options.pop("overlap", 0)
    recipe, fingerprint = options.pop("recipe", "r1"), options.pop("fingerprint", FINGERPRINT)
    decision = options.pop("decision", {"chunker": "window", "why": "test"})
    header = options.pop("header", "")
    document = Document(text=text, source=source, **options)
    starts = range(0, len(text), window - overlap)
    chunks = tuple(
        Chunk.cut(
            document,
            at,
            min(len(text), at + window),
            counter=COUNTER,
            chunker="window",
            header=header,
            stretch=Span(max(0, at - around), min(len(text), at + window + around)),
        )
        for at in starts
    )
    record = FileRecord(
        origin=origin,
        source=source,
        content_hash=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
        size_bytes=len(text),
        mtime_ns=1,
        recipe=recipe,
        doc_id=document.id,
    )
    vectors = {chunk.key: vector(chunk.key) for chunk in chunks} if fingerprint else {}
    return Entry(
        file=record, document=document, chunks=chunks, vectors=vectors, fingerprint=fingerprint, decision=decision
    )


def failed_record(source: str = "a.md") -> FileRecord:
    return FileRecord(
        origin=f"/docs/{source}",
        source=source,
        content_hash="h",
        size_bytes=1,
        mtime_ns=2,
        recipe="r1",
        error="not a PDF",
    )


def fill(directory: Path, *entries: Entry) -> None:
    """A closed index with these entries."""
    with Store.create_or_open(directory) as store:
        store.set_manifest({"fingerprint": FINGERPRINT, "dimension": 4})
        store.commit(entries=entries)


NO_CONTENT = ("derived", "runs")
"""Tables that say nothing of the documents: which files are made already, and who asked what."""


def dump(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of content, and every word position of the full-text index, of one moment."""
    db = Database(directory, writable=False)
    try:
        with db.reading():
            sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'lexical%' ORDER BY name"
            names = [name for (name,) in db.rows(sql) if name not in NO_CONTENT]
            tables = {name: sorted(db.rows(f"SELECT * FROM {name}"), key=repr) for name in names}
            tables["sqlite_sequence"] = [row for row in tables["sqlite_sequence"] if row[0] not in NO_CONTENT]
            db.run("CREATE VIRTUAL TABLE temp.places USING fts5vocab(main, lexical, instance)")
            return {**tables, "lexical": db.rows("SELECT * FROM temp.places")}
    finally:
        db.close()
