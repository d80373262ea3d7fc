"""The one open index of the server: shared by all requests, exchanged for a new one when its generation changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rag.index import Index
from rag.store.corpus import StoreCorpus
from rag.store.schema import FILE_NAME
from rag.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag.protocols import Retriever, Searcher

__all__ = ["HeldIndex", "ServedIndex", "TenantIndex"]

_log = logging.getLogger("rag.server")
_Version = tuple[int, int]
"""(inode of the database, generation): a restored or compacted index is another file."""


class ServedIndex(Index):
    """An index whose snapshot several threads read."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._corpus = store.corpus()  # by the thread that opens it, not by the first that reads
        self._opening = threading.RLock()
        self.users = 0
        self.is_retired = False

    def searcher(self, retriever: Retriever) -> Searcher:
        with self._opening:
            return super().searcher(retriever)


class TenantIndex(Index):
    """The shared index as one tenant uses it: runs are kept under the tenant's name. Never closed by itself."""

    def __init__(self, shared: ServedIndex, tenant: str, *, keeps_runs: bool = True) -> None:
        super().__init__(cast(Store, _TaggedStore(shared.store, tenant, keeps_runs)))
        self._shared = shared

    @property
    def corpus(self) -> StoreCorpus:
        return self._shared.corpus

    def searcher(self, retriever: Retriever) -> Searcher:
        return self._shared.searcher(retriever)

    def close(self) -> None:
        """Nothing: the shared index is closed by its holder."""


class _TaggedStore:
    """A store that notes on every run whose it is."""

    def __init__(self, store: Store, tenant: str, keeps_runs: bool) -> None:
        self._store, self._tenant, self._keeps_runs = store, tenant, keeps_runs

    def add_run(self, run: Mapping[str, Any]) -> str:
        return self._store.add_run({**run, "tenant": self._tenant}) if self._keeps_runs else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class HeldIndex:
    """Lends the index out, and exchanges it. `prepare` opens what a new one needs before anybody gets it."""

    def __init__(self, directory: Path, prepare: Callable[[ServedIndex], None]) -> None:
        self.directory = directory
        self._prepare = prepare
        self._lock = threading.Lock()
        self._current: ServedIndex | None = None
        self._version: _Version | None = None
        self._seen: _Version | None = None

    def open(self) -> None:
        """Open the index; UsageError when there is none."""
        version, _ = self._look()
        fresh = ServedIndex(Store.open(self.directory))
        try:
            self._prepare(fresh)
        except BaseException:
            fresh.close()
            raise
        with self._lock:
            old, self._current = self._current, fresh
        self._seen = self._version = version
        if old:
            self._retire(old)

    @property
    def generation(self) -> int:
        """Of the snapshot that requests read; 0 before there is one."""
        return self._current.corpus.generation if self._current else 0

    @contextmanager
    def lend(self) -> Iterator[ServedIndex]:
        """The index of now; it stays open until the block ends, whatever is exchanged meanwhile."""
        with self._lock:
            if self._current is None:
                raise RuntimeError("the index is not open")
            index = self._current
            index.users += 1
        try:
            yield index
        finally:
            with self._lock:
                index.users -= 1
                is_last = index.is_retired and not index.users
            if is_last:
                index.close()

    def refresh(self) -> bool:
        """Take a new snapshot if the index has changed and its writer is through; True when one was taken.

        Through: it has published the retrievers' files of this generation, or the generation stands since the look
        before. What cannot be opened now (a writer in between, a folder that is away) is tried at the next look.
        """
        version, is_ready = self._look()
        if version == self._version:
            return False
        stands, self._seen = version == self._seen, version
        if not (is_ready or stands):
            return False
        self.open()
        _log.info("serving generation %d of %s", version[1], self.directory)
        return True

    def close(self) -> None:
        """Close it, at once or when its last user is done."""
        with self._lock:
            old, self._current = self._current, None
        if old:
            self._retire(old)

    def _retire(self, index: ServedIndex) -> None:
        with self._lock:
            index.is_retired = True
            is_unused = not index.users
        if is_unused:
            index.close()

    def _look(self) -> tuple[_Version, bool]:
        with Store.open(self.directory) as store:
            generation, ready = store.generation, store.manifest().get("ready") or {}
        inode = (self.directory / FILE_NAME).stat().st_ino
        return (inode, generation), ready.get("generation") == generation
