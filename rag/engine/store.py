"""Blocks on disk, so that a chunk is prefilled once: one safetensors file each, named by its content's key.

A ledger in SQLite beside the files says what each costs and who owns it. Everything here can be computed again, so
whatever is in doubt (a half-written file, a file without a row, a row without its file, a wrong checksum) is dropped.
The files tell the texts they were made from: the folder is closed to other users. What reads and writes tensors is
imported when a block is put or got, so that owners can be dropped without torch.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rag.engine.errors import EngineError

if TYPE_CHECKING:
    from rag.engine.blobs import KvType
    from rag.engine.blocks import KvBlock

__all__ = ["Entry", "KvStore"]

_TABLES = """
CREATE TABLE IF NOT EXISTS blobs (
    key TEXT PRIMARY KEY, bytes INTEGER NOT NULL, checksum INTEGER NOT NULL, cost REAL NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0, last_use INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (owner TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (owner, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS owners_of ON owners (key);
CREATE TABLE IF NOT EXISTS sources (source TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (source, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sources_of ON sources (key);
"""
_WRITING = ".part"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger. `last_use` counts the store's uses, so the largest is the latest."""

    key: str
    size_bytes: int
    cost: float
    hits: int
    last_use: int
    owners: tuple[str, ...]
    sources: tuple[str, ...] = ()


class KvStore:
    """Blobs in `folder`, never more than `max_bytes` of files in all, the one being written included.

    When room is needed, the blob with the lowest recompute cost x (1 + hits) / bytes goes first; of equals the one
    unused for longest. Every blob has owners (document or chunk ids) and goes with the last of them; where other texts
    left a trace in it, those are its sources, and it goes with any of them. Threads and processes may share a folder:
    every change is one locked transaction of the ledger.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        if max_bytes < 0:
            raise EngineError(f"max_bytes must be >= 0, not {max_bytes}")
        self.folder, self.max_bytes = folder, max_bytes
        self._blobs = folder / "blobs"
        for made in (folder, self._blobs):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._ledger = sqlite3.connect(
            folder / "ledger.sqlite", isolation_level=None, timeout=60, check_same_thread=False
        )
        try:
            self._ledger.execute("PRAGMA journal_mode=WAL")
            self._ledger.execute("PRAGMA synchronous=NORMAL")
            self._ledger.executescript(_TABLES)
            self.healed = self._heal()
        except sqlite3.DatabaseError as error:
            self._ledger.close()
            raise EngineError(
                f"the ledger of the KV store in {folder} cannot be read ({error}): delete the folder, everything in it "
                "can be computed again"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._ledger.close()

    def __enter__(self) -> KvStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(
        self, block: KvBlock, policy: str, owners: Iterable[str], *, dtype: KvType = "bf16", cost: float = 1.0,
        sources: Iterable[str] = (),
    ) -> str | None:  # fmt: skip
        """Keeps `block`, made by `policy`, for `owners`; `cost` is that of making it again, in any one unit. `sources`
        are the documents behind whose text it was made.

        Returns its key, or None where the cap leaves no room for it. A block that is there gets the owners and sources
        too.
        """
        from rag.engine.blobs import block_key, pack

        names, behind = tuple(owners), tuple(sources)
        if not names or cost < 0:
            raise EngineError(f"a block needs at least one owner and a cost >= 0, not {names} and {cost}")
        key = block_key(block.ids, block.fingerprint, policy, dtype)
        if self._has(key, names, behind):
            return key
        content = pack(block, dtype)
        with self._change() as ledger:
            if not self._make_room(len(content)):
                return None
            self._write(key, content)
            ledger.execute(
                "INSERT OR REPLACE INTO blobs (key, bytes, checksum, cost, last_use) VALUES (?, ?, ?, ?, ?)",
                (key, len(content), zlib.crc32(content), cost, self._tick()),
            )
            self._enter(key, names, behind)
        return key

    def get(self, ids: Sequence[int], fingerprint: str, policy: str, *, dtype: KvType = "bf16") -> KvBlock | None:
        """The block with exactly these ids, mapped from its file, or None. One whose checksum is wrong is dropped."""
        from rag.engine.blobs import block_key, unpack

        key = block_key(ids, fingerprint, policy, dtype)
        with self._change() as ledger:
            row = ledger.execute("SELECT checksum FROM blobs WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            try:
                if _checksum(self._file(key)) == row[0]:
                    block = unpack(self._file(key))
                    if block.ids == tuple(ids) and block.fingerprint == fingerprint:
                        ledger.execute(
                            "UPDATE blobs SET hits = hits + 1, last_use = ? WHERE key = ?", (self._tick(), key)
                        )
                        return block
            except (OSError, EngineError):
                pass  # gone or unreadable: as good as a wrong checksum
            self._forget(key)
        return None

    def drop(self, owner: str) -> int:
        """Takes `owner` from all its blobs; deletes those that have none left, and those that have it as a source,
        whoever owns them; returns how many were deleted."""
        with self._change() as ledger:
            keys = [key for (key,) in ledger.execute("SELECT key FROM owners WHERE owner = ?", (owner,))]
            ledger.execute("DELETE FROM owners WHERE owner = ?", (owner,))
            gone = {key for (key,) in ledger.execute("SELECT key FROM sources WHERE source = ?", (owner,))}
            for key in keys:
                if ledger.execute("SELECT 1 FROM owners WHERE key = ? LIMIT 1", (key,)).fetchone() is None:
                    gone.add(key)
            for key in gone:
                self._forget(key)
        return len(gone)

    def verify(self) -> list[Path]:
        """The files that are missing or not as they were written."""
        with self._lock:
            rows = self._ledger.execute("SELECT key, bytes, checksum FROM blobs ORDER BY key").fetchall()
        wrong: list[Path] = []
        for key, size, checksum in rows:
            file = self._file(key)
            if not file.is_file() or file.stat().st_size != size or _checksum(file) != checksum:
                wrong.append(file)
        known = {entry.key for entry in self.entries()}  # what was evicted meanwhile is not wrong
        return [file for file in wrong if file.stem in known]

    def entries(self) -> list[Entry]:
        """The ledger, by key."""
        with self._lock:
            rows = self._ledger.execute("SELECT key, bytes, cost, hits, last_use FROM blobs ORDER BY key").fetchall()
            owners = _by_key(self._ledger.execute("SELECT key, owner FROM owners ORDER BY owner"))
            sources = _by_key(self._ledger.execute("SELECT key, source FROM sources ORDER BY source"))
        return [
            Entry(key, size, cost, hits, used, tuple(owners.get(key, ())), tuple(sources.get(key, ())))
            for key, size, cost, hits, used in rows
        ]

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return int(self._ledger.execute("SELECT COALESCE(SUM(bytes), 0) FROM blobs").fetchone()[0])

    def __len__(self) -> int:
        with self._lock:
            return int(self._ledger.execute("SELECT COUNT(*) FROM blobs").fetchone()[0])

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction that no other thread or process can enter."""
        with self._lock:
            self._ledger.execute("BEGIN IMMEDIATE")
            try:
                yield self._ledger
            except BaseException:
                self._ledger.execute("ROLLBACK")
                raise
            self._ledger.execute("COMMIT")

    def _has(self, key: str, owners: Sequence[str], sources: Sequence[str]) -> bool:
        with self._change() as ledger:
            if ledger.execute("SELECT 1 FROM blobs WHERE key = ?", (key,)).fetchone() is None:
                return False
            self._enter(key, owners, sources)
            return True

    def _enter(self, key: str, owners: Sequence[str], sources: Sequence[str]) -> None:
        self._ledger.executemany("INSERT OR IGNORE INTO owners VALUES (?, ?)", [(one, key) for one in owners])
        self._ledger.executemany("INSERT OR IGNORE INTO sources VALUES (?, ?)", [(one, key) for one in sources])

    def _tick(self) -> int:
        return int(self._ledger.execute("SELECT COALESCE(MAX(last_use), 0) + 1 FROM blobs").fetchone()[0])

    def _file(self, key: str) -> Path:
        return self._blobs / f"{key}.safetensors"

    def _make_room(self, wanted: int) -> bool:
        """Evicts until `wanted` bytes fit under the cap; False, with nothing evicted, where they never would."""
        if wanted > self.max_bytes:
            return False
        over = self.size_bytes + wanted - self.max_bytes
        ranked = self._ledger.execute(
            "SELECT key, bytes FROM blobs ORDER BY cost * (1 + hits) / bytes, last_use"
        ).fetchall()
        for key, size in ranked:
            if over <= 0:
                break
            self._forget(key)
            over -= size
        return True

    def _forget(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)
        self._ledger.execute("DELETE FROM blobs WHERE key = ?", (key,))
        self._ledger.execute("DELETE FROM owners WHERE key = ?", (key,))
        self._ledger.execute("DELETE FROM sources WHERE key = ?", (key,))

    def _write(self, key: str, content: bytes) -> None:
        """The file appears whole or not at all, and is on the disk before its row is."""
        part = self._blobs / f"{key}{_WRITING}"
        try:
            with part.open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            part.replace(self._file(key))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the new name itself is on the disk only once the folder is
            handle = os.open(self._blobs, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _heal(self) -> int:
        """Makes files and rows agree after a crash, and the cap hold where it is smaller now; returns what was dropped.

        Inside a transaction no other process is writing, so every unfinished file is a leftover.
        """
        dropped = 0
        with self._change() as ledger:
            rows = dict(ledger.execute("SELECT key, bytes FROM blobs").fetchall())
            for file in sorted(self._blobs.iterdir()):
                key = file.stem
                if file.suffix == ".safetensors" and rows.get(key) == file.stat().st_size:
                    del rows[key]
                elif file.is_file():
                    file.unlink()
                    dropped += key not in rows
            for key in rows:
                self._forget(key)
                dropped += 1
            before = len(self)
            self._make_room(0)
            dropped += before - len(self)
        return dropped


def _by_key(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return found


def _checksum(file: Path) -> int:
    state = 0
    with file.open("rb") as data:
        while part := data.read(1 << 20):
            state = zlib.crc32(part, state)
    return state
