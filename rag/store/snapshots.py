"""Whole copies of an index that can be gone back to.

A snapshot is one file, `snapshots/NAME.CHECKSUM.sqlite`: a copy through SQLite's own backup, which sees one committed
state while readers and a writer go on, made durable before it gets its name. The checksum in the name is that of
the file, so that a snapshot appears with its checksum or not at all.
"""

from __future__ import annotations

import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rag.errors import IndexDamagedError, UsageError, no_index
from rag.store.database import translated
from rag.store.derived import checksum
from rag.store.failpoints import hit
from rag.store.schema import FILE_NAME, read_format, sync_directory, sync_file
from rag.store.swap import connect, need_room, swap

__all__ = [
    "SNAPSHOTS",
    "SnapshotInfo",
    "check_snapshot",
    "create_snapshot",
    "delete_snapshot",
    "list_snapshots",
    "restore_snapshot",
    "sweep_snapshots",
]

SNAPSHOTS = "snapshots"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_FILE = re.compile(rf"({_NAME.pattern})\.([0-9a-f]{{32}})\.sqlite")
_MAX_NAME = 80
_PAGES_AT_ONCE = 4096
_ABANDONED_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """One snapshot. `created` is ISO 8601 in UTC; the counts are None when the file cannot be read."""

    name: str
    path: Path
    created: str
    bytes: int
    format: int | None
    generation: int | None
    documents: int | None
    chunks: int | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON-safe form."""
        return {**asdict(self), "path": str(self.path)}


def create_snapshot(
    directory: Path, name: str | None = None, *, on_progress: Callable[[int, int], None] | None = None
) -> SnapshotInfo:
    """Copy the newest committed state; needs no lock. `on_progress` gets (pages done, pages in all).

    UsageError when the name is taken or is none.
    """
    live, folder = directory / FILE_NAME, directory / SNAPSHOTS
    if not live.is_file():
        raise no_index(directory)
    name = _checked(folder, name)
    need_room(directory, live.stat().st_size, "A snapshot")
    fresh = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        _copy(live, fresh, on_progress)
        hit("snapshot.copied")
        sync_file(fresh)
        hit("snapshot.synced")
        path = folder / f"{name}.{checksum(fresh)[0]}.sqlite"
        fresh.replace(path)
        sync_directory(folder)
        hit("snapshot.renamed")
    except PermissionError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}); a snapshot lies beside its index") from error
    finally:
        fresh.unlink(missing_ok=True)
    return _info(name, path)


def list_snapshots(directory: Path) -> list[SnapshotInfo]:
    """All snapshots, oldest first."""
    found = [_info(name, path) for name, path in _files(directory / SNAPSHOTS).items()]
    return sorted(found, key=lambda info: (info.created, info.name))


def check_snapshot(path: Path) -> bool:
    """True when the file is what its checksum says."""
    match = _FILE.fullmatch(path.name)
    return match is not None and checksum(path)[0] == match[3]


def restore_snapshot(directory: Path, name: str) -> None:
    """Make the index what it was. The caller holds the writer lock; readers that are open keep what they see.

    IndexDamagedError, and nothing changed, when the snapshot is damaged or of a newer format. An older one is
    brought to this format on the way.
    """
    from rag.store.migrate import upgrade

    path = _find(directory, name)
    need_room(directory, 2 * path.stat().st_size, "Restoring a snapshot")
    copy = directory / f"restore.{secrets.token_hex(4)}.tmp"
    try:
        shutil.copyfile(path, copy)
        digest = checksum(copy)[0]
        if f"{name}.{digest}.sqlite" != path.name:
            raise IndexDamagedError(
                f"snapshot {name!r} is damaged: its checksum is {digest}, its file is {path}. The index was not "
                "touched. Restore another snapshot (rag snapshot list)."
            )
        with translated(copy):
            connection = connect(copy)
            try:
                read_format(connection, path)
            finally:
                connection.close()
        upgrade(copy)
        hit("restore.copied")
        swap(directory, copy)
        hit("restore.done")
    finally:
        for leftover in (copy, Path(f"{copy}-wal"), Path(f"{copy}-shm"), Path(f"{copy}-journal")):
            leftover.unlink(missing_ok=True)


def delete_snapshot(directory: Path, name: str) -> None:
    """UsageError when there is none of that name."""
    _find(directory, name).unlink()
    sync_directory(directory / SNAPSHOTS)


def sweep_snapshots(directory: Path) -> None:
    """Delete what dead copies left. A copy needs no lock, so young ones may still be in the making."""
    for path in directory.glob("restore.*.tmp*"):
        path.unlink(missing_ok=True)
    for path in (directory / SNAPSHOTS).glob(".*.tmp*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def _checked(folder: Path, name: str | None) -> str:
    taken = _files(folder)
    if name is None:
        base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return next(wanted for n in range(1, 10**6) if (wanted := base if n == 1 else f"{base}-{n}") not in taken)
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a snapshot; allowed are up to {_MAX_NAME} letters, digits, '-', '_' and single "
            "dots inside, such as before-upgrade"
        )
    if name in taken:
        raise UsageError(f"there is a snapshot {name!r} already; choose another name, or delete it first")
    return name


def _copy(live: Path, fresh: Path, on_progress: Callable[[int, int], None] | None) -> None:
    def watch(_: int, remaining: int, total: int) -> None:
        if on_progress:
            on_progress(total - remaining, total)

    with translated(live):
        source = connect(live)
        try:
            read_format(source, live)
            source.execute("BEGIN")  # all steps copy one state, whatever is committed meanwhile
            source.execute("SELECT count(*) FROM state").fetchone()
            target = sqlite3.connect(fresh, isolation_level=None)
            try:
                source.backup(target, pages=_PAGES_AT_ONCE, progress=watch)
                target.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
            finally:
                target.close()
        finally:
            source.close()


def _files(folder: Path) -> dict[str, Path]:
    """Name -> file."""
    paths = folder.glob("*.sqlite") if folder.is_dir() else iter(())
    return {match[1]: path for path in sorted(paths) if (match := _FILE.fullmatch(path.name))}


def _find(directory: Path, name: str) -> Path:
    known = _files(directory / SNAPSHOTS)
    if name not in known:
        names = ", ".join(known) or "none"
        raise UsageError(f"there is no snapshot {name!r} in {directory / SNAPSHOTS}; there are: {names}")
    return known[name]


def _info(name: str, path: Path) -> SnapshotInfo:
    facts = path.stat()
    counts: tuple[int | None, ...] = (None, None, None, None)
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            counts = connection.execute(
                "SELECT (SELECT user_version FROM pragma_user_version), "
                "(SELECT CAST(value AS INTEGER) FROM state WHERE name = 'generation'), "
                "(SELECT count(*) FROM documents), (SELECT count(*) FROM chunks)"
            ).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        pass  # listed all the same; restoring it says what is wrong
    version, generation, documents, chunks = counts
    return SnapshotInfo(
        name=name,
        path=path,
        created=datetime.fromtimestamp(facts.st_mtime, UTC).isoformat(timespec="seconds"),
        bytes=facts.st_size,
        format=version,
        generation=generation,
        documents=documents,
        chunks=chunks,
    )
