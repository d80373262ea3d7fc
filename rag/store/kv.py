"""Keys and values of chunks, which a language model in this process keeps beside the index: the folder `kv`.

They are no part of the truth. `rag.engine.store` reads and writes them; here is what the index owes them: the blobs of
a document, and those that were made behind its text, go with it, since they tell its text, and `verify` and `repair`
look at them. No torch is needed for that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from rag.engine.errors import EngineError
from rag.engine.store import KvStore

__all__ = ["KV_NAME", "SHARED_OWNER", "check_kv", "clear_kv", "count_kv", "drop_kv", "mend_kv", "sweep_kv"]

KV_NAME = "kv"
SHARED_OWNER = "prompt"
"""Owns the blobs of no document: of the text that every prompt starts with."""

_LEDGER = "ledger.sqlite"
_FAILURES = (sqlite3.Error, OSError, EngineError)


def drop_kv(directory: Path, doc_ids: Iterable[str]) -> int:
    """Delete the blobs that only these documents own and those that were made behind them; how many. What cannot be
    done blob by blob, deletes all."""
    gone = list(doc_ids)
    return _change(directory, lambda store: sum(map(store.drop, gone))) if gone else 0


def sweep_kv(directory: Path, is_known: Callable[[str], bool]) -> int:
    """Delete the blobs of documents that are gone, which a writer that died has left; how many."""

    def sweep(store: KvStore) -> int:
        named = {name for entry in store.entries() for name in (*entry.owners, *entry.sources)}
        return sum(store.drop(name) for name in sorted(named) if name != SHARED_OWNER and not is_known(name))

    return _change(directory, sweep)


def _change(directory: Path, change: Callable[[KvStore], int]) -> int:
    if not (directory / KV_NAME / _LEDGER).is_file():
        return 0
    try:
        with KvStore(directory / KV_NAME, max_bytes=sys.maxsize) as store:
            return change(store)
    except _FAILURES:
        clear_kv(directory)  # better made again than kept after its document
        return 0


def clear_kv(directory: Path) -> bool:
    """Delete all of them; False when that is not possible."""
    shutil.rmtree(directory / KV_NAME, ignore_errors=True)
    return not (directory / KV_NAME).exists()


def count_kv(directory: Path) -> int:
    """How many blobs are kept; 0 when their ledger cannot be read."""
    with contextlib.suppress(*_FAILURES):
        return len(_rows(directory))
    return 0


def check_kv(directory: Path) -> list[str]:
    """What is wrong with the blobs, for `verify`. Changes nothing."""
    cure = "they are computed anew when they are next needed"
    try:
        wrong = [file for file, size, crc in _rows(directory) if not _is_whole(file, size, crc)]
    except _FAILURES as error:
        return [f"{KV_NAME}/{_LEDGER}: the ledger of kept keys and values cannot be read ({error}); {cure}"]
    return [f"{KV_NAME}/blobs/{file.name}: not the keys and values that were kept; {cure}" for file in wrong]


def mend_kv(directory: Path) -> int:
    """Forget the blobs that are not what was kept; how many."""

    def mend(store: KvStore) -> int:
        for file in store.verify():
            file.unlink(missing_ok=True)
        return 0

    wrong = len(check_kv(directory))
    if wrong:
        _change(directory, mend)
        _change(directory, lambda store: store.healed)  # opening drops the rows of files that are gone
    return wrong


def _rows(directory: Path) -> list[tuple[Path, int, int]]:
    """(file, bytes, crc32) of every blob in the ledger."""
    folder = directory / KV_NAME
    ledger = folder / _LEDGER
    if not ledger.is_file():
        return []
    options = "mode=rw" if os.access(ledger, os.W_OK) and os.access(folder, os.W_OK) else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{ledger.absolute().as_uri()}?{options}", uri=True, timeout=5)) as connection:
        found = connection.execute("SELECT key, bytes, checksum FROM blobs ORDER BY key").fetchall()
    return [(folder / "blobs" / f"{key}.safetensors", size, crc) for key, size, crc in found]


def _is_whole(file: Path, size: int, crc: int) -> bool:
    if not file.is_file() or file.stat().st_size != size:
        return False
    state = 0
    with file.open("rb") as data:
        while part := data.read(1 << 20):
            state = zlib.crc32(part, state)
    return state == crc
