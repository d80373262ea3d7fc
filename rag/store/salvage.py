# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Reads every row that is still readable out of a damaged index file, around the damaged pages.

Tables are read by row id in blocks; a block that cannot be read is halved until the damaged rows stand alone. Rows
keep their ids. Nothing is judged here: that is what the checksums and rag.store.cure are for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rag.store.database import Database
from rag.store.swap import connect

__all__ = ["salvage"]

_BLOCK = 512
_ROWS_PER_ROW = 4
"""How many times more rows than the largest table before it a table may have whose end cannot be read."""
_TABLES = {
    "fingerprints": "id, name, dimension",
    "documents": "id, doc_id, source, title, chars, decision, meta, blocks, pages, crc, chunks_crc",
    "document_texts": "document, part, text",
    "signatures": "document, signature, crc",
    "files": "origin, source, content_hash, size_bytes, mtime_ns, recipe, document, error",
    "chunks": "id, document, start, stop, parent_start, parent_stop, token_count, key, header, section, chunker, "
    "surround",
    "vectors": "id, fingerprint, key, vector, crc",
}
"""Table -> its columns. The metadata that filters read, the full-text index and the list of derived files are not
here: they are made from these."""


def salvage(path: Path, db: Database) -> list[str]:
    """Copy what can be read of `path` into the empty index `db`; one line per table that lost rows.

    The full-text index is not filled: `cure` does that.
    """
    try:
        connection = connect(path)
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return [f"nothing could be read ({error}); restore a snapshot, or ingest the sources again"]
    try:
        db.run("PRAGMA foreign_keys=OFF")  # the cure looks after rows whose parents are gone
        with db.writing():
            lines = _copy_all(connection, db)
        db.run("PRAGMA foreign_keys=ON")
    finally:
        connection.close()
    return lines


def _copy_all(connection: sqlite3.Connection, db: Database) -> list[str]:
    lines = []
    sequences = _guarded(connection, "SELECT name, seq FROM sqlite_sequence")
    last = {str(name): int(seq) for name, seq in sequences if isinstance(seq, int)}
    for name, value in _guarded(connection, "SELECT name, value FROM state"):
        db.run("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
    there = {name for (name,) in _guarded(connection, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    most = 1000
    for table, columns in _TABLES.items():
        if table not in there:
            lines.append(f"table {table} is gone")
            continue
        end = _last_row(connection, table)
        if end is not None:
            most = max(most, end)
        known = end if end is not None else max(last.get(table, 0), _ROWS_PER_ROW * most)
        marks = ",".join("?" * (columns.count(",") + 1))
        unread = _Count()
        names = _guarded(connection, f"SELECT name FROM pragma_table_info('{table}')")
        asked = columns if ("surround",) in names else columns.replace("surround", "''")  # format 2 had none
        sql = f"SELECT {asked} FROM {table} NOT INDEXED WHERE rowid BETWEEN ? AND ?"
        db.many(f"INSERT OR IGNORE INTO {table}({columns}) VALUES ({marks})", _blocks(connection, sql, known, unread))
        if unread.damaged:
            lines.append(f"table {table}: some rows could not be read")
    for name in ("documents", "chunks"):
        held = db.value("SELECT seq FROM sqlite_sequence WHERE name = ?", (name,)) or 0
        db.run("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
        db.run("INSERT INTO sqlite_sequence VALUES (?, ?)", (name, max(held, last.get(name, 0))))
    return lines


class _Count:
    damaged = False


def _blocks(connection: sqlite3.Connection, sql: str, last: int, unread: _Count) -> Iterator[tuple[Any, ...]]:
    for first in range(0, last + 1, _BLOCK):
        yield from _rows(connection, sql, first, min(last, first + _BLOCK - 1), unread)


def _rows(connection: sqlite3.Connection, sql: str, first: int, last: int, unread: _Count) -> Iterator[tuple[Any, ...]]:
    try:
        rows = connection.execute(sql, (first, last)).fetchall()
    except sqlite3.Error:
        unread.damaged = True
        if first < last:
            middle = (first + last) // 2
            yield from _rows(connection, sql, first, middle, unread)
            yield from _rows(connection, sql, middle + 1, last, unread)
        return
    yield from rows


def _last_row(connection: sqlite3.Connection, table: str) -> int | None:
    rows = _guarded(connection, f"SELECT max(rowid) FROM {table}")
    return (rows[0][0] or 0) if rows else None


def _guarded(connection: sqlite3.Connection, sql: str) -> list[tuple[Any, ...]]:
    """As many rows as can be read."""
    rows: list[tuple[Any, ...]] = []
    with suppress(sqlite3.Error):
        for row in connection.execute(sql):
            rows.append(row)  # one by one: what comes before the damage is kept
    return rows
