# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Brings an index of an older format to this one, in place: one transaction, the format number last.

A new format adds one function to `_STEPS`. Steps see the file as the step before left it, run inside the transaction
and must not use code that later formats change.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import IndexDamagedError, no_index
from rag.store.database import translated
from rag.store.failpoints import hit
from rag.store.lock import WriterLock
from rag.store.runs import copy_runs
from rag.store.schema import FILE_NAME, FORMAT, read_format
from rag.store.snapshots import create_snapshot, list_snapshots
from rag.store.swap import connect, need_room, read_counters

__all__ = ["MigrateReport", "migrate", "upgrade"]


@dataclass(frozen=True, kw_only=True)
class MigrateReport:
    """From which format to which; equal when there was nothing to do. `snapshot` holds the old state."""

    before: int
    after: int
    snapshot: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag migrate --json` prints."""
        return {"before": self.before, "after": self.after, "snapshot": self.snapshot}


def migrate(directory: Path, *, keep_old: bool = True, wait_seconds: float = 0.0) -> MigrateReport:
    """Bring the index of `directory` to this version's format, after a snapshot of it unless `keep_old` is False.

    IndexDamagedError for a newer format, and for a file that is no index; IndexLockedError while somebody writes.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        raise no_index(directory)
    lock = WriterLock(directory, wait_seconds=wait_seconds)
    try:
        before = _format_of(path)
        if before == FORMAT:
            return MigrateReport(before=before, after=before)
        need_room(directory, (3 if keep_old else 2) * path.stat().st_size, "Migrating the index")
        name = _keep(directory, before) if keep_old else None
        hit("migrate.kept")
        upgrade(path, runs_into=directory)
        return MigrateReport(before=before, after=FORMAT, snapshot=name)
    finally:
        lock.release()


def upgrade(path: Path, *, runs_into: Path | None = None) -> None:
    """Bring one index file to this format; nothing happens to one that has it. The caller holds the writer lock.

    Traces of runs that an old file holds go to the directory `runs_into`, or away.
    """
    before = _format_of(path)
    if before == FORMAT:
        return
    with translated(path):
        connection = connect(path, writable=True)
        try:
            if before == 1 and runs_into is not None:
                copy_runs(runs_into, connection.execute("SELECT run_id, run FROM runs ORDER BY id").fetchall())
                hit("migrate.runs")
            connection.execute("BEGIN IMMEDIATE")
            for version in range(before, FORMAT):
                _STEPS[version](connection)
                hit("migrate.step")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            hit("migrate.written")
            connection.execute("COMMIT")
            hit("migrate.done")
        finally:
            connection.close()


def _format_of(path: Path) -> int:
    with translated(path):
        connection = connect(path)
        try:
            version = read_format(connection, path)
        finally:
            connection.close()
    if version < 1:
        raise IndexDamagedError(f"{path} has index format {version}, which never was. Run `rag repair`.")
    return version


def _keep(directory: Path, before: int) -> str:
    """The snapshot of the old file; the one of a migration that died is taken up."""
    generation = read_counters(directory / FILE_NAME).generation
    base = f"before-format-{FORMAT}"
    known = {info.name: info for info in list_snapshots(directory)}
    for number in range(1, len(known) + 2):
        name = base if number == 1 else f"{base}-{number}"
        if name not in known:
            return create_snapshot(directory, name).name
        if (known[name].format, known[name].generation) == (before, generation):
            return name
    raise AssertionError("one of the names is free")


def _to_2(connection: sqlite3.Connection) -> None:
    """Checksums for vectors and documents, signatures for near-duplicates; traces in a file of their own."""
    connection.execute("DROP TABLE runs")
    connection.execute("CREATE INDEX files_source ON files(source)")
    connection.execute(
        "CREATE TABLE signatures(\n"
        "    document INTEGER PRIMARY KEY REFERENCES documents ON DELETE CASCADE,\n"
        "    signature BLOB NOT NULL,\n"
        "    crc INTEGER NOT NULL)"
    )
    connection.execute(
        "CREATE TABLE signature_bands(\n"
        "    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,\n"
        "    band INTEGER NOT NULL,\n"
        "    PRIMARY KEY (document, band)) WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX signature_bands_band ON signature_bands(band)")
    connection.create_function("crc32", 1, zlib.crc32, deterministic=True)
    connection.execute("ALTER TABLE vectors ADD COLUMN crc INTEGER NOT NULL DEFAULT 0")
    connection.execute("UPDATE vectors SET crc = crc32(vector)")
    for name in ("crc", "chunks_crc"):
        connection.execute(f"ALTER TABLE documents ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
    columns = "doc_id, source, title, chars, decision, meta, blocks, pages"
    chunk_columns = "start, stop, parent_start, parent_stop, token_count, key, header, section, chunker"
    for (row,) in connection.execute("SELECT id FROM documents ORDER BY id").fetchall():
        values = connection.execute(f"SELECT {columns} FROM documents WHERE id = ?", (row,)).fetchone()
        crc = 0
        sql = f"SELECT {chunk_columns} FROM chunks WHERE document = ? ORDER BY start, stop"
        for chunk in connection.execute(sql, (row,)):
            crc = zlib.crc32(ascii(chunk).encode(), crc)
        head = zlib.crc32(ascii(values).encode())
        connection.execute("UPDATE documents SET crc = ?, chunks_crc = ? WHERE id = ?", (head, crc, row))


def _to_3(connection: sqlite3.Connection) -> None:
    """Names of the text around a chunk. Checksums of chunk rows leave an empty one out, so they hold as they are."""
    connection.execute("ALTER TABLE chunks ADD COLUMN surround TEXT NOT NULL DEFAULT ''")


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _to_2, 2: _to_3}
"""Format -> the step that leads from it to the next."""
