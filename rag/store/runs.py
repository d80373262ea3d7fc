"""Traces of finished runs, for `rag explain`, in a small SQLite file of their own.

They are no part of the truth: asking never meets the writer, an index is restored or rebuilt without losing them,
and a file of traces that cannot be read or written never stands in the way of a search.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rag.errors import IndexDamagedError, UsageError

__all__ = ["KEPT_RUNS", "RUNS_NAME", "add_run", "check_runs", "copy_runs", "count_runs", "read_run", "read_runs"]

RUNS_NAME = "runs.sqlite"
KEPT_RUNS = 1000
_APPLICATION_ID = 0x43_48_57_52  # "CHWR"
_FORMAT = 1
_BUSY_SECONDS = 5.0
_TABLE = "CREATE TABLE runs(id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL UNIQUE, run TEXT NOT NULL)"
_TRIM = "DELETE FROM runs WHERE id <= (SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?)"


def add_run(directory: Path, run: Mapping[str, Any]) -> str:
    """Store a trace and return its id; "" when that is not possible (read-only, busy, full disk, damaged file)."""
    text = json.dumps(dict(run))  # before the file is opened: a trace that is no JSON is the caller's mistake
    run_id = secrets.token_hex(4)
    try:
        connection = _open_for_writing(directory)
    except (sqlite3.Error, OSError, IndexDamagedError):
        return ""
    try:
        while connection.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
            run_id = secrets.token_hex(4)
        connection.execute("INSERT INTO runs(run_id, run) VALUES (?, ?)", (run_id, text))
        connection.execute(_TRIM, (KEPT_RUNS,))
        connection.execute("COMMIT")
    except sqlite3.Error:
        return ""
    finally:
        connection.close()
    return run_id


def copy_runs(directory: Path, runs: Iterable[tuple[str, str]]) -> None:
    """Add (run id, JSON text) pairs, oldest first; ids that are there already are left as they are.

    IndexDamagedError when the file of traces cannot take them.
    """
    try:
        connection = _open_for_writing(directory)
        try:
            connection.executemany("INSERT OR IGNORE INTO runs(run_id, run) VALUES (?, ?)", runs)
            connection.execute(_TRIM, (KEPT_RUNS,))
            connection.execute("COMMIT")
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise _unreadable(directory, error) from error


def read_run(directory: Path, run_id: str) -> dict[str, Any]:
    """The trace with its `run_id`; UsageError for an unknown id."""
    rows = _rows(directory, "SELECT run_id, run FROM runs WHERE run_id = ?", (run_id,))
    if not rows:
        raise UsageError(
            f"no run {run_id!r} in {directory}; {KEPT_RUNS} are kept, and `rag explain --list` names the newest"
        )
    return {**json.loads(rows[0][1]), "run_id": run_id}


def read_runs(directory: Path, limit: int) -> list[dict[str, Any]]:
    """The newest traces, newest first."""
    rows = _rows(directory, "SELECT run_id, run FROM runs ORDER BY id DESC LIMIT ?", (max(0, limit),))
    return [{**json.loads(text), "run_id": run_id} for run_id, text in rows]


def count_runs(directory: Path) -> int:
    """How many traces are kept; 0 when their file cannot be read."""
    try:
        rows = _rows(directory, "SELECT count(*) FROM runs")
    except IndexDamagedError:
        return 0
    return int(rows[0][0]) if rows else 0


def check_runs(directory: Path) -> list[str]:
    """What is wrong with the file of traces, for `verify`."""
    try:
        lines = [line for (line,) in _rows(directory, "PRAGMA quick_check(5)") if line != "ok"]
        for _, text in _rows(directory, "SELECT run_id, run FROM runs"):
            json.loads(text)
    except (IndexDamagedError, ValueError) as error:
        return [str(error)]
    return [f"{RUNS_NAME}: {line}" for line in lines]


def _rows(directory: Path, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Result rows; none when there is no file yet. IndexDamagedError when it is not what it should be."""
    path = directory / RUNS_NAME
    if not path.exists():
        return []
    try:
        try:
            return _read(path, "ro", sql, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            return _read(path, "rw", sql, values)  # rolls back what a killed writer has left in the journal
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _unreadable(directory, error) from error


def _read(path: Path, mode: str, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS)
    try:
        return connection.execute(sql, values).fetchall() if _is_ready(connection, path) else []
    finally:
        connection.close()


def _open_for_writing(directory: Path) -> sqlite3.Connection:
    """A connection inside a write transaction, the table made when the file is new."""
    if not os.access(directory, os.W_OK):
        raise PermissionError(f"{directory} cannot be written")
    path = directory / RUNS_NAME
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if not _is_ready(connection, path):
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={_FORMAT}")
            connection.execute(_TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_ready(connection: sqlite3.Connection, path: Path) -> bool:
    """False for an empty file, which its maker did not finish; IndexDamagedError for somebody else's."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) == (_APPLICATION_ID, _FORMAT):
        return True
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,) and not application:
        return False
    raise IndexDamagedError(
        f"{path} is no file of traces of this version (application {application}, format {version}). "
        "The index itself is not touched by that; `rag repair` puts the file aside."
    )


def _unreadable(directory: Path, error: Exception) -> IndexDamagedError:
    return IndexDamagedError(
        f"{directory / RUNS_NAME}: the traces of earlier answers cannot be read or written ({error}). "
        "The index itself is not touched by that; `rag repair` puts the file aside."
    )
