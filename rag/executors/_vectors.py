"""The stage between cut documents and the writer: their vectors, made here or ahead in workers.

Only contents that the store lacks are embedded, those of one batch together, so that the calls of an embedder, and
with them every bit of its vectors, are the same wherever it runs. Workers cannot see the store: what a batch will
lack is foretold from the store and from the batches before it, and looked up again when its turn comes. Where a commit
in between has changed it (a document that went took its vectors along), the batch is embedded once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from rag.embedders._chunks import embed_chunks
from rag.executors._window import WINDOW_BYTES
from rag.jobs import Batch, Runner, WorkerLostError
from rag.store.records import Entry

if TYPE_CHECKING:
    from rag.protocols import Embedder, Vectors
    from rag.store.store import Store
    from rag.types import Chunk

__all__ = ["Embedded", "VectorStage"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedded(Generic[T]):
    """A batch whose turn it is, the vectors of its new contents, and the documents that have none: id -> reason."""

    batch: T
    vectors: Mapping[str, Vectors]
    lost: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    batch: T
    entries: Sequence[Entry]
    size: int
    keys: frozenset[str]
    made: Future[Mapping[str, Vectors]] | None


class VectorStage(Generic[T]):
    """Takes batches and gives them back in the same order, with vectors. Commit each before taking the next.

    Without an embedder, or a `fingerprint` that names its vectors in the store, every batch comes back as it is.
    """

    def __init__(self, store: Store, embedder: Embedder | None, fingerprint: str | None, runner: Runner) -> None:
        self._store = store
        self._embedder = embedder if fingerprint is not None else None
        self._fingerprint = fingerprint or ""
        self._runner = runner
        self._waiting: deque[_Waiting[T]] = deque()

    def put(self, batch: T, entries: Sequence[Entry]) -> Iterator[Embedded[T]]:
        """Start embedding a batch; the batches whose turn it is, which are none while workers have too little to do."""
        most = self._runner.embeds if self._embedder else 0
        keys: frozenset[str] = frozenset()
        made = None
        if most:
            coming = frozenset[str]().union(*(one.keys for one in self._waiting))
            lacking = {key: chunk for key, chunk in self._lacking(entries).items() if key not in coming}
            keys = frozenset(lacking)
            made = self._begin(entries, lacking) if lacking else None
        size = sum(len(entry.document.text) for entry in entries)
        self._waiting.append(_Waiting(batch, entries, size, keys, made))
        yield from self._ready(most)

    def rest(self) -> Iterator[Embedded[T]]:
        """All that wait still."""
        yield from self._ready(0)

    def _ready(self, most: int) -> Iterator[Embedded[T]]:
        while len(self._waiting) > most or sum(one.size for one in self._waiting) > WINDOW_BYTES:
            yield self._embedded(self._waiting.popleft())

    def _embedded(self, one: _Waiting[T]) -> Embedded[T]:
        lacking = self._lacking(one.entries) if self._embedder else {}
        if not lacking or self._embedder is None:
            return Embedded(one.batch, {}, {})
        if not self._runner.embeds:
            texts = {entry.document.id: entry.document.text for entry in one.entries}
            return Embedded(one.batch, embed_chunks(self._embedder, list(lacking.values()), texts.__getitem__), {})
        made = one.made if one.made and one.keys == lacking.keys() else self._begin(one.entries, lacking)
        try:
            return Embedded(one.batch, made.result(), {})
        except WorkerLostError:
            return Embedded(one.batch, *self._without_killers(one.entries))

    def _without_killers(self, entries: Sequence[Entry]) -> tuple[Mapping[str, Vectors], dict[str, str]]:
        """The vectors of all documents but those over which workers die, each tried alone, and why those have none."""
        alone: dict[str, Vectors] = {}
        lost: dict[str, str] = {}
        for entry in entries:
            lacking = self._lacking([entry])
            try:
                alone.update(self._begin([entry], lacking).result() if lacking else {})
            except WorkerLostError as error:
                lost[entry.document.id] = f"embedding it {error}"
        kept = [entry for entry in entries if entry.document.id not in lost]
        lacking = self._lacking(kept)
        try:
            return (self._begin(kept, lacking).result() if lacking else {}), lost
        except WorkerLostError:  # together they are too much for a worker
            return {key: alone[key] for key in lacking}, lost

    def _lacking(self, entries: Sequence[Entry]) -> dict[str, Chunk]:
        """A chunk of every content that the store has no vector of now, in reading order."""
        contents = {chunk.key: chunk for entry in entries for chunk in entry.chunks}
        known = self._store.known_vectors(self._fingerprint, list(contents))
        return {key: chunk for key, chunk in contents.items() if key not in known}

    def _begin(self, entries: Sequence[Entry], lacking: Mapping[str, Chunk]) -> Future[Mapping[str, Vectors]]:
        around = {chunk.doc_id for chunk in lacking.values() if chunk.surround}
        texts = {entry.document.id: entry.document.text for entry in entries if entry.document.id in around}
        return self._runner.embed(Batch(chunks=tuple(lacking.values()), texts=texts))
