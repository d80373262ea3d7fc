# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""The tables of `index.sqlite`, format 3, and the atomic creation of such a file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from rag.errors import IndexDamagedError, RagError
from rag.store.failpoints import hit

__all__ = [
    "FILE_NAME",
    "FORMAT",
    "LEXICAL",
    "OBJECTS",
    "PART_CHARS",
    "check_format",
    "create_file",
    "missing_names",
    "read_format",
    "sync_directory",
    "sync_file",
]

FILE_NAME = "index.sqlite"
OBJECTS = "SELECT type, name FROM sqlite_master"
APPLICATION_ID = 0x43_48_57_31  # "CHW1"
FORMAT = 3

PART_CHARS = 4096
"""A document's text is kept in parts of this many code points, so that a chunk is read from one part or two.

SQLite's own substr() would read the text from its beginning for every chunk, and stops at a NUL character.
"""

LEXICAL = "fts5(text, heading, content='', tokenize='porter unicode61 remove_diacritics 2')"
"""Contentless: rows hold the lexical form, deletion repeats it. Porter stemming and the heading column are measured:
with both, recall at 10 rose on all of six public sets (SciFact 0.79 -> 0.88, COVID-QA 0.75 -> 0.77)."""

_TABLES = f"""
CREATE TABLE state(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO state VALUES ('generation', '0'), ('manifest', '{{}}'), ('lexical', '""');

CREATE TABLE documents(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    doc_id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    title TEXT NOT NULL,
    chars INTEGER NOT NULL,
    decision TEXT,
    meta TEXT NOT NULL,
    blocks TEXT NOT NULL,
    pages TEXT NOT NULL,
    crc INTEGER NOT NULL DEFAULT 0,
    chunks_crc INTEGER NOT NULL DEFAULT 0);
CREATE INDEX documents_source ON documents(source);

CREATE TABLE document_texts(
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    part INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (document, part));

CREATE TABLE document_meta(
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    name TEXT NOT NULL,
    value NOT NULL,
    PRIMARY KEY (document, name)) WITHOUT ROWID;

CREATE TABLE signatures(
    document INTEGER PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    signature BLOB NOT NULL,
    crc INTEGER NOT NULL);

CREATE TABLE signature_bands(
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    band INTEGER NOT NULL,
    PRIMARY KEY (document, band)) WITHOUT ROWID;
CREATE INDEX signature_bands_band ON signature_bands(band);

CREATE TABLE files(
    origin TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    recipe TEXT NOT NULL,
    document INTEGER REFERENCES documents DEFERRABLE INITIALLY DEFERRED,
    error TEXT,
    CHECK (document IS NOT NULL OR error IS NOT NULL));
CREATE INDEX files_document ON files(document);
CREATE INDEX files_source ON files(source);

CREATE TABLE chunks(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    parent_start INTEGER,
    parent_stop INTEGER,
    token_count INTEGER NOT NULL,
    key BLOB NOT NULL,
    header TEXT NOT NULL,
    section TEXT NOT NULL,
    chunker TEXT NOT NULL,
    surround TEXT NOT NULL DEFAULT '',
    UNIQUE (document, start, stop),
    CHECK (0 <= start AND start < stop));
CREATE INDEX chunks_key ON chunks(key);

CREATE TABLE fingerprints(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    dimension INTEGER NOT NULL);
CREATE TABLE vectors(
    id INTEGER PRIMARY KEY,
    fingerprint INTEGER NOT NULL REFERENCES fingerprints,
    key BLOB NOT NULL,
    vector BLOB NOT NULL,
    crc INTEGER NOT NULL DEFAULT 0,
    UNIQUE (key, fingerprint));

CREATE VIRTUAL TABLE lexical USING {LEXICAL};

CREATE TABLE derived(
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    file TEXT NOT NULL,
    checksum TEXT NOT NULL,
    bytes INTEGER NOT NULL);
"""


def create_file(directory: Path) -> None:
    """Make an empty index in `directory`, whole or not at all. The caller holds the writer lock."""
    path = directory / FILE_NAME
    fresh = directory / f"{FILE_NAME}.new"
    for leftover in (fresh, *_beside(fresh), *_beside(path)):
        leftover.unlink(missing_ok=True)  # a log without its database would be replayed into the new one
    try:
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(
                f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; {_TABLES} COMMIT;"
            )
            # Last: what stands in a log when the file is renamed would be lost, and closing reports no failure.
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RagError(f"{directory}: the index cannot be created ({error})") from error
    if mode != "wal":
        raise RagError(f"{directory}: the index cannot be created (SQLite refuses its write-ahead log here)")
    hit("create.written")
    sync_file(fresh)
    hit("create.synced")
    fresh.replace(path)
    sync_directory(directory)
    hit("create.renamed")


def _beside(path: Path) -> list[Path]:
    """What SQLite may leave beside a database."""
    return [Path(f"{path}{suffix}") for suffix in ("-journal", "-wal", "-shm")]


def missing_names(held: Iterable[tuple[str, str]]) -> list[str]:
    """The tables and indexes of this format that are not among `held`, the rows of OBJECTS."""
    model = sqlite3.connect(":memory:")
    try:
        model.executescript(_TABLES)
        return sorted(name for _, name in set(model.execute(OBJECTS)) - set(held))
    finally:
        model.close()


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """IndexDamagedError unless this is an index of the format that this version reads."""
    version = read_format(connection, path)
    if version < FORMAT:
        raise IndexDamagedError(
            f"{path} has index format {version}; this version of Chunkwise reads format {FORMAT}. "
            f"Bring it up to date with: rag migrate --index {path.parent}"
        )


def read_format(connection: sqlite3.Connection, path: Path) -> int:
    """The format of an index file; IndexDamagedError when it is none, or newer than this version knows."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise IndexDamagedError(
            f"{path} is an SQLite file of another application (id {application}), not a Chunkwise index. "
            "Choose another index directory, or move this file away and run `rag ingest` again."
        )
    if version > FORMAT:
        raise IndexDamagedError(
            f"{path} has index format {version}; this version of Chunkwise reads format {FORMAT}. "
            "Upgrade Chunkwise, or build a new index with `rag ingest` in another directory."
        )
    return int(version)


def sync_file(path: Path) -> None:
    """Make what was written to `path` durable."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable. Windows has no such call and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
