"""One SQLite connection with our settings, our errors and one transaction at a time.

A `Database` may be used from several threads: every statement and every transaction holds its lock. It must not
be carried over a fork.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rag.errors import IndexDamagedError, IndexLockedError, RagError, UsageError, no_index
from rag.store.failpoints import hit
from rag.store.schema import FILE_NAME, check_format

__all__ = ["BATCH", "Database", "Row", "batches", "marks", "translated", "understood"]

Row = tuple[Any, ...]

BATCH = 500
"""Values per `IN (...)` list."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Database:
    """The index file of a directory, opened for writing or for reading."""

    def __init__(self, directory: Path, *, writable: bool, busy_seconds: float = 10.0) -> None:
        self.path = directory / FILE_NAME
        self._lock = threading.RLock()
        if not self.path.is_file():
            raise no_index(directory)
        with translated(self.path):
            self._connection = _connect(self.path, writable, busy_seconds)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All result rows."""
        with self._lock, translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, values: Sequence[Any] = ()) -> Row | None:
        """The first result row, or None."""
        with self._lock, translated(self.path):
            row: Row | None = self._connection.execute(sql, values).fetchone()
            return row

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        row = self.one(sql, values)
        return None if row is None else row[0]

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """Result rows one by one; read it to its end inside `reading()`."""
        with self._lock, translated(self.path):
            yield from self._connection.execute(sql, values)

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a change; the row id of the last inserted row."""
        with self._lock, translated(self.path):
            return self._connection.execute(sql, values).lastrowid or 0

    def many(self, sql: str, values: Iterable[Sequence[Any]]) -> int:
        """Execute a change for each of `values`; the number of rows that changed."""
        with self._lock, translated(self.path):
            return self._connection.executemany(sql, values).rowcount

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All statements inside see one state of the index."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self.run("BEGIN")
            try:
                yield
            finally:
                self._connection.rollback()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: durable when the block ends, undone when it raises."""
        with self._lock:
            self.run("BEGIN IMMEDIATE")
            try:
                self._hit("commit.begin")
                yield
                self._hit("commit.written")
                self.run("COMMIT")
            except BaseException:
                self._undo()
                raise
            self._hit("commit.done")

    def _undo(self) -> None:
        """A disk that fails may refuse this as well; what led here is the error to tell, and closing undoes too."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.rollback()

    def _hit(self, point: str) -> None:
        with translated(self.path):
            hit(point)

    def begin_snapshot(self) -> None:
        """Hold one state of the index until `close`."""
        self.run("BEGIN")
        self.value("SELECT count(*) FROM state")  # SQLite takes the snapshot at the first read, not at BEGIN

    def close(self) -> None:
        """Give the connection back; calling twice is fine."""
        with self._lock:
            self._connection.close()


def _connect(path: Path, writable: bool, busy_seconds: float) -> sqlite3.Connection:
    if writable:
        return _open(path, "mode=rw", busy_seconds)
    try:
        return _open(path, "mode=ro", busy_seconds)
    except sqlite3.OperationalError:
        # The log of a WAL database needs a writable directory. Without one nobody writes, and a database
        # without a log is complete by itself.
        log = Path(f"{path}-wal")
        if os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
            raise
        if log.exists() and log.stat().st_size:
            raise UsageError(
                f"{path.parent} cannot be written, and its index has an unfinished log ({log.name}). "
                "Copy the directory to a writable place and use that one."
            ) from None
        return _open(path, "mode=ro&immutable=1", busy_seconds)


def _open(path: Path, options: str, busy_seconds: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    connection = sqlite3.connect(uri, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        check_format(connection, path)
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-32768")
        connection.execute("SELECT count(*) FROM state").fetchone()  # opens the log: fails here, not later
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors, and those of the operating system, into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _ours(error, path) from error
    except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in its message, which is then no text
        raise _damaged(path, error) from error
    except OSError as error:
        raise RagError(f"{path}: {error.strerror or error}") from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Stored values that cannot be what was stored (no JSON, no span) are damage too."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> IndexDamagedError:
    return IndexDamagedError(
        f"{path} is damaged ({error}). Run `rag verify` for the details and `rag repair` to cure it, or restore a copy "
        "(rag snapshot restore NAME); the sources are not touched."
    )


def _ours(error: sqlite3.Error, path: Path) -> RagError:
    # A damaged byte inside a text shows up as one that is no UTF-8, a damaged schema as a missing table.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    text = str(error)
    if code in _DAMAGED or "decode to UTF-8" in text or "no such table" in text or "no such column" in text:
        return _damaged(path, text)
    if code in _BUSY:
        return IndexLockedError(f"{path} is busy: another process is writing ({text}). Try again in a moment.")
    if code == sqlite3.SQLITE_FULL:
        return RagError(f"{path} cannot grow: the disk is full. Nothing of this step was stored; free some space.")
    return RagError(f"{path}: {text}")


def batches(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """`values` in parts of at most BATCH."""
    for at in range(0, len(values), BATCH):
        yield values[at : at + BATCH]


def marks(values: Sequence[Any]) -> str:
    """As many question marks as there are values."""
    return ",".join("?" * len(values))
