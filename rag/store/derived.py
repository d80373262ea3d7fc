"""Derived files (a FAISS index, a mirror): immutable, checksummed, tied to one generation, rebuildable at any time.

Order of a publication: write under a temporary name, fsync, checksum, rename, fsync the directory, record in the
database, delete what is superseded. A death between any two steps leaves an unrecorded file, which the next writer
sweeps away, and never a recorded one that is not whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from rag.errors import ConfigError, RagError
from rag.store.database import Database, Row
from rag.store.failpoints import hit
from rag.store.read import read_state
from rag.store.schema import sync_directory

__all__ = ["DerivedFiles"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class DerivedFiles:
    """The folder `derived` of an index directory, and its rows in the table of the same name."""

    def __init__(self, directory: Path, *, is_writable: Callable[[], bool]) -> None:
        self._directory = directory
        self._folder = directory / "derived"
        self._is_writable = is_writable

    def find(self, name: str, generation: int | None) -> Path | None:
        """The file of this very generation (None: of any) when its checksum holds, else None."""
        sql = "SELECT file, checksum, bytes FROM derived WHERE name = ?1 AND (?2 IS NULL OR generation = ?2)"
        row = self._row(sql, name, generation)
        if row is None:
            return None
        path = self._folder / row[0]
        return path if matches(path, row[1], row[2]) else None

    def present(self) -> bool:
        """True when every recorded file is there and has its size; a look at the directory, no reading of files."""
        db = Database(self._directory, writable=False)
        try:
            rows = db.rows("SELECT file, bytes FROM derived")
        finally:
            db.close()
        return all(_size(self._folder / file) == size for file, size in rows)

    def publish(self, name: str, generation: int, write: Callable[[Path], None]) -> Path | None:
        """The durable file that `write(path)` made; None when the index is read-only or has moved on meanwhile."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a derived file; allowed are letters, digits, '.', '_', '-'")
        if not self._is_writable():
            return None
        fresh = self._folder / f"{name}.{secrets.token_hex(4)}.tmp"
        try:
            if not self._folder.exists():
                self._folder.mkdir(exist_ok=True)
                sync_directory(self._directory)
            write(fresh)
            return self._settle(name, generation, fresh)
        except OSError as error:
            raise RagError(
                f"{self._folder}: the file {name!r} cannot be made ({error.strerror or error}). All documents are "
                "stored; free some space or mend the disk, then run the same command again."
            ) from error
        finally:
            with contextlib.suppress(OSError):  # the next writer sweeps it away
                fresh.unlink(missing_ok=True)

    def _settle(self, name: str, generation: int, fresh: Path) -> Path | None:
        hit("derived.written")
        with fresh.open("rb+") as handle:
            os.fsync(handle.fileno())
        hit("derived.synced")
        digest, size = checksum(fresh)
        path = self._folder / f"{name}.{generation}.{digest[:12]}"
        if path.is_dir():
            _remove(path)  # nobody of us made it, and no file can take its place
        fresh.replace(path)
        sync_directory(self._folder)
        hit("derived.renamed")
        if not self._record((name, generation, path.name, digest, size)):
            _remove(path)
            return None
        hit("derived.recorded")
        self.sweep(name)
        hit("derived.swept")
        return path

    def _record(self, row: Row) -> bool:
        db = Database(self._directory, writable=True)
        try:
            with db.writing():
                current = bool(read_state(db, "generation") == row[1])
                if current:
                    db.run("INSERT OR REPLACE INTO derived VALUES (?, ?, ?, ?, ?)", row)
            return current
        finally:
            db.close()

    def sweep(self, name: str | None = None) -> None:
        """Delete files that no row names: superseded ones and those of a publication that died. Writers only."""
        if not self._folder.is_dir():
            return
        db = Database(self._directory, writable=False)
        try:
            kept = {file for (file,) in db.rows("SELECT file FROM derived")}
        finally:
            db.close()
        for path in self._folder.iterdir():
            if path.name not in kept and (name is None or path.name.startswith(f"{name}.")):
                _remove(path)

    def _row(self, sql: str, *values: object) -> Row | None:
        db = Database(self._directory, writable=False)
        try:
            return db.one(sql, values)
        finally:
            db.close()


def _remove(path: Path) -> None:
    """Delete a file that nobody needs; one that cannot be deleted now is tried again by the next writer."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    """Bytes of a regular file; None when there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def checksum(path: Path) -> tuple[str, int]:
    """(BLAKE2b digest in hex, size in bytes) of a file."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16))
        return digest.hexdigest(), os.fstat(handle.fileno()).st_size


def matches(path: Path, digest: str, size: int) -> bool:
    """True when the file is there and is what was recorded."""
    try:
        return path.stat().st_size == size and checksum(path)[0] == digest
    except OSError:
        return False
