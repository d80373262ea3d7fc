"""A finished index file takes the place of the live one, in one durable step.

A live file that SQLite can read is overwritten through SQLite's own backup, which is one transaction of its log:
readers that are open keep the state that they opened, a death in the middle leaves the old state. A live file that
is damaged or absent is put aside, and the new one renamed into its place.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rag.errors import IndexDamagedError, RagError
from rag.store.database import translated
from rag.store.derived import DerivedFiles
from rag.store.failpoints import hit
from rag.store.schema import FILE_NAME, read_format, sync_directory, sync_file

__all__ = ["Counters", "connect", "finish_replacement", "need_room", "overwrite", "read_counters", "replace", "swap"]

_READY = f"{FILE_NAME}.ready"
_SEQUENCES = ("documents", "chunks")
_PAGES_AT_ONCE = 1024
_MAX_REFUSALS = 40
_GONE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What must never run backwards in one index directory: the generation, and the last row ids given out."""

    generation: int = 0
    documents: int = 0
    chunks: int = 0


def swap(directory: Path, fresh: Path) -> None:
    """Make `fresh` (an index file of this format that nobody has open) the index of `directory`.

    The caller holds the writer lock; `fresh` is changed, and may be gone afterwards. The generation grows, and no row
    id that this directory has given out is given out again. Derived files go: they are made anew when needed.
    """
    live = directory / FILE_NAME
    try:
        counters = read_counters(live) if live.exists() else None
    except IndexDamagedError:
        if not _is_unreadable(live):
            raise  # another application's file, or that of a newer version: not ours to put aside
        counters = None
    _prepare(fresh, counters or Counters())
    if counters is None:
        replace(directory, fresh)
    else:
        need_room(directory, fresh.stat().st_size, "Replacing the index")
        overwrite(live, fresh)
    DerivedFiles(directory, is_writable=lambda: True).sweep()


def read_counters(path: Path) -> Counters:
    """The counters of an index file of any format; IndexDamagedError when it is not readable as one."""
    with translated(path):
        connection = connect(path)
        try:
            read_format(connection, path)
            (text,) = connection.execute("SELECT value FROM state WHERE name = 'generation'").fetchone() or ("0",)
            numbers = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
        finally:
            connection.close()
    try:
        generation = int(json.loads(text))
    except (ValueError, TypeError):
        generation = 0
    return Counters(generation=generation, **{name: int(numbers.get(name, 0)) for name in _SEQUENCES})


def connect(path: Path, *, writable: bool = False) -> sqlite3.Connection:
    """A plain connection to an index file of any format, for the verbs that work on whole files."""
    uri = f"{path.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
    connection = sqlite3.connect(uri, uri=True, timeout=10.0, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-32768")
    return connection


def _is_unreadable(path: Path) -> bool:
    """True when SQLite cannot read the file, or it has our mark but not our tables."""
    try:
        connection = connect(path)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            read_format(connection, path)
            return True
        finally:
            connection.close()
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _GONE
    except IndexDamagedError:
        return False


def _prepare(fresh: Path, live: Counters) -> None:
    ours = read_counters(fresh)
    with translated(fresh):
        connection = connect(fresh, writable=True)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM derived")
            generation = str(max(live.generation, ours.generation) + 1)
            connection.execute("INSERT OR REPLACE INTO state VALUES ('generation', ?)", (generation,))
            for name in _SEQUENCES:
                last = max(getattr(live, name), getattr(ours, name))
                connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
                connection.execute("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", (name, last))
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
        finally:
            connection.close()


def overwrite(live: Path, fresh: Path) -> None:
    """The contents of `fresh` become those of `live` in one transaction, while readers go on."""
    with translated(live):
        source, target = connect(fresh), connect(live, writable=True)
        try:
            target.execute("PRAGMA journal_mode=WAL")
            (pages,) = source.execute("PRAGMA page_count").fetchone()
            hit("swap.begin")
            step = max(1, min(_PAGES_AT_ONCE, pages // 3))
            source.backup(target, pages=step, progress=_watcher(live))
            hit("swap.done")
            target.execute("PRAGMA busy_timeout=0")  # readers of the old state are not waited for
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            source.close()
            target.close()


def _watcher(live: Path) -> Callable[[int, int, int], None]:
    refusals = 0

    def watch(status: int, remaining: int, total: int) -> None:
        nonlocal refusals
        refusals = refusals + 1 if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else 0
        if refusals > _MAX_REFUSALS:
            raise RagError(f"{live} is busy: another process is writing. Nothing was changed; try again in a moment.")
        if 0 < remaining < total:
            hit("swap.half")

    return watch


def replace(directory: Path, finished: Path) -> Path | None:
    """Rename `finished` into the place of the live file and keep what was there aside; where that is now.

    From the first rename on a death is made good by the next writer, see `finish_replacement`.
    """
    sync_file(finished)
    finished.replace(directory / _READY)
    sync_directory(directory)
    hit("replace.ready")
    return finish_replacement(directory)


def finish_replacement(directory: Path) -> Path | None:
    """Carry a replacement that was begun to its end; where the old file is, None when there was none.

    The log is moved before the new file comes, since SQLite would replay it into any database of that name.
    """
    ready, live = directory / _READY, directory / FILE_NAME
    if not ready.exists():
        return None
    aside = _put_aside(live) if live.exists() else None
    log = Path(f"{live}-wal")
    if log.exists():
        log.replace(f"{aside}-wal") if aside else log.unlink()
    Path(f"{live}-shm").unlink(missing_ok=True)
    sync_directory(directory)
    hit("replace.aside")
    ready.replace(live)
    sync_directory(directory)
    hit("replace.done")
    return aside


def _put_aside(live: Path) -> Path:
    """A second name for the file, or a copy of it where the file system has no such thing."""
    number = 1
    while (aside := live.with_name(f"{FILE_NAME}.damaged-{number}")).exists():
        if aside.samefile(live):
            return aside  # begun before a death
        number += 1
    try:
        os.link(live, aside)
    except OSError:
        shutil.copy2(live, aside)
    return aside


def need_room(directory: Path, needed: int, what: str) -> None:
    """RagError when the disk of `directory` has less than `needed` bytes left."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RagError(
            f"{what} needs {needed / 1e6:,.1f} MB of free disk in {directory}, and there are {free / 1e6:,.1f} MB. "
            "Free some space, or copy the index to a larger disk; nothing was changed."
        )
