"""One writer per index directory. The operating system frees the lock when its owner dies, however it dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rag.errors import IndexLockedError, UsageError
from rag.store.failpoints import hit

__all__ = ["WriterLock"]

_OWNER = "writer.json"


class WriterLock:
    """Holds `writer.lock`; `writer.json` beside it names the owner, for the error that others see."""

    def __init__(self, directory: Path, *, wait_seconds: float = 0.0) -> None:
        """IndexLockedError when another writer still holds the lock after `wait_seconds`."""
        self._directory = directory
        self._lock = FileLock(directory / "writer.lock", thread_local=False)
        try:
            self._lock.acquire(timeout=max(0.0, wait_seconds), poll_interval=0.05)
        except Timeout:
            raise IndexLockedError(
                f"{directory} is being written by {_describe(directory)}. Wait until it ends, or stop it; "
                "searching is possible meanwhile."
            ) from None
        except OSError as error:
            raise UsageError(
                f"{directory} cannot be written ({error.strerror}). Choose an index directory that you may write."
            ) from error
        try:
            hit("lock.acquired")
            self._write_owner()
        except OSError:
            self._unname()  # the name is a courtesy to others; a dead owner's would be a wrong one

    def release(self) -> None:
        """Let the next writer in; calling twice is fine."""
        if self._lock.is_locked:
            self._unname()
            with contextlib.suppress(OSError):
                hit("lock.unnamed")
            self._lock.release()
            with contextlib.suppress(OSError):
                hit("lock.released")

    def _unname(self) -> None:
        with contextlib.suppress(OSError):
            (self._directory / _OWNER).unlink(missing_ok=True)

    def _write_owner(self) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        fresh = self._directory / f"{_OWNER}.new"
        fresh.write_text(json.dumps(owner), encoding="utf-8")
        hit("lock.written")
        fresh.replace(self._directory / _OWNER)
        hit("lock.named")


def _describe(directory: Path) -> str:
    try:
        owner = json.loads((directory / _OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, started {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it took the lock a moment ago
