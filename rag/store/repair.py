"""Cures what `verify` finds. Nothing is dropped without a line in the report.

Two levels. A file that SQLite reads without complaint is cured inside one transaction (rag.store.cure). A file that it
does not is first salvaged: every row that can still be read goes into a new file, the new file is cured, and takes
the place of the damaged one, which is kept aside.
"""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import IndexDamagedError, no_index
from rag.store.cure import Cured, Removed, cure
from rag.store.database import Database, translated
from rag.store.derived import DerivedFiles
from rag.store.failpoints import hit
from rag.store.kv import mend_kv
from rag.store.lock import WriterLock
from rag.store.runs import RUNS_NAME, check_runs
from rag.store.salvage import salvage
from rag.store.schema import FILE_NAME, OBJECTS, check_format, create_file, missing_names, read_format, sync_directory
from rag.store.sentences import check_sentences, clear_sentences
from rag.store.snapshots import check_snapshot, list_snapshots
from rag.store.swap import connect, finish_replacement, need_room, replace

__all__ = ["Removed", "RepairReport", "repair"]

_SALVAGE = "salvage"


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """`fixed` says what was done, `removed` which documents went and why. `uncut` are ids of documents whose text is
    sound and whose chunks were not: they stand without chunks until they are cut again. `unembedded` counts chunks
    without a vector. `aside` is where the damaged file is."""

    fixed: list[str] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)
    uncut: list[str] = field(default_factory=list)
    unembedded: int = 0
    aside: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag repair --json` prints."""
        removed = [{"source": item.source, "origins": list(item.origins), "why": item.why} for item in self.removed]
        aside = None if self.aside is None else str(self.aside)
        left = {"uncut": self.uncut, "unembedded": self.unembedded}
        return {"fixed": self.fixed, "removed": removed, **left, "aside": aside}


def repair(directory: Path, *, wait_seconds: float = 0.0) -> RepairReport:
    """Make the index of `directory` agree with itself. What needs an embedder or a chunker is left to rag.upkeep.

    UsageError when there is no index; IndexDamagedError for a file of another application or another format.
    """
    if not (directory / FILE_NAME).exists() and not (directory / f"{FILE_NAME}.ready").exists():
        raise no_index(directory)
    lock = WriterLock(directory, wait_seconds=wait_seconds)
    try:
        fixed: list[str] = []
        aside = finish_replacement(directory)
        shutil.rmtree(directory / _SALVAGE, ignore_errors=True)  # of a repair that died
        _beside(directory, fixed)
        reason = _why_unreadable(directory / FILE_NAME)
        if reason is None:
            db = Database(directory, writable=True)
            try:
                found = cure(db)
            finally:
                db.close()
        else:
            fixed.append(f"{FILE_NAME} is damaged ({reason}): what could be read was moved into a new file")
            aside, lost, found = _rescue(directory)
            fixed.extend(lost)
        DerivedFiles(directory, is_writable=lambda: True).sweep()
        return RepairReport(
            fixed=[*fixed, *found.fixed],
            removed=found.removed,
            uncut=found.uncut,
            unembedded=found.unembedded,
            aside=aside,
        )
    finally:
        lock.release()


def _beside(directory: Path, fixed: list[str]) -> None:
    """The file of traces and the snapshots: what cannot be used is put aside; what can be made again is deleted."""
    if problems := check_runs(directory):
        number = 1
        while (aside := directory / f"{RUNS_NAME}.damaged-{number}").exists():
            number += 1
        (directory / RUNS_NAME).replace(aside)
        fixed.append(f"traces of earlier answers were unreadable and are now in {aside.name} ({problems[0]})")
    if (problems := check_sentences(directory)) and clear_sentences(directory):
        fixed.append(f"deleted the kept vectors of sentences, which are made again when needed ({problems[0]})")
    if wrong := mend_kv(directory):
        fixed.append(f"deleted {wrong} damaged keys and values of chunks, which are computed again when needed")
    for info in list_snapshots(directory):
        if not check_snapshot(info.path):
            info.path.replace(info.path.with_name(f"{info.path.name}.damaged"))
            sync_directory(info.path.parent)
            fixed.append(f"snapshot {info.name} is not what was written; it is now {info.path.name}.damaged")


def _why_unreadable(path: Path) -> str | None:
    """Why the file must be salvaged; None when its pages and tables are sound. Foreign files are errors."""
    try:
        connection = connect(path)
        try:
            if read_format(connection, path) < 1:
                return "its format number is gone"
            if path.stat().st_size % int(connection.execute("PRAGMA page_size").fetchone()[0]):
                return "it ends inside a page"
            if absent := missing_names(connection.execute(OBJECTS)):
                return f"without {', '.join(absent)}"
            for (line,) in connection.execute("PRAGMA integrity_check(20)").fetchall():
                if line != "ok" and "FTS5" not in line:
                    return str(line).splitlines()[-1]
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
    except IndexDamagedError:
        if not _has_our_tables(path):
            raise
        return "its mark is gone"
    with translated(path):
        check = connect(path)
        try:
            check_format(check, path)
        finally:
            check.close()
    return None


def _has_our_tables(path: Path) -> bool:
    """True for a file without a mark of any application that holds our tables, or none: its head was spoiled."""
    try:
        connection = connect(path)
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error:
        return True  # nobody's database at all: it stands in the place of ours
    return application == 0 and (not names or {"documents", "chunks", "files"} <= names)


def _rescue(directory: Path) -> tuple[Path | None, list[str], Cured]:
    """(where the damaged file is, what could not be read, what the cure of the new file found)."""
    folder = directory / _SALVAGE
    need_room(directory, 2 * (directory / FILE_NAME).stat().st_size, "Salvaging the index")
    folder.mkdir()
    create_file(folder)
    db = Database(folder, writable=True)
    try:
        lost = salvage(directory / FILE_NAME, db)
        found = cure(db)
        db.run("PRAGMA wal_checkpoint(TRUNCATE)")
        db.value("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
    finally:
        db.close()
    hit("repair.salvaged")
    aside = replace(directory, folder / FILE_NAME)
    shutil.rmtree(folder, ignore_errors=True)
    hit("repair.done")
    return aside, lost, found
