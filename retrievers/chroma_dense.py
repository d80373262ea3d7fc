"""Dense retrieval with Chroma: a mirror of the corpus in an embedded database, or on a Chroma server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock, Timeout

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Filter, Retriever, Searcher, service
from rag.types import Chunk, Hit
from retrievers._audit import compare
from retrievers._chroma_mirror import (
    MARKER,
    directory_client,
    held,
    ids_digest,
    memory_client,
    mirror,
    mirror_generation,
    record_ids,
    row_of,
    server_client,
)
from retrievers._chroma_probe import disagreements, look, seal
from retrievers._dense import check_dimension, exact_best, to_hits

if TYPE_CHECKING:
    from rag.protocols import Vectors

_SPARE = 4
"""Candidates asked for per wanted hit: Chroma searches an approximate graph, the exact cosine then orders them."""
_LEAST = 50
_TOLERANCE = 1e-6
"""Chroma scales vectors to unit length once more."""
_FOLDER, _LOCK = "chroma", "chroma.lock"


@dataclass(frozen=True, kw_only=True)
class ChromaDenseRetriever(Retriever):
    """Cosine search in Chroma over a mirror of the stored vectors; the scores are exact cosines.

    Without `host` the mirror lies in `chroma/` of the index directory and has one collection. With `host` it lies on
    that server (no authentication: keep it on loopback or behind a proxy), and its collection is named after
    `collection` and the index directory, so that two indexes never share one.
    A view that cannot be written to and has no mirror of its generation is mirrored in memory, at every opening.
    """

    embedder: Embedder = service()
    k: int = 40
    host: str = ""
    port: int = 8000
    collection: str = "chunkwise"

    needs_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1 or not 1 <= self.port <= 65535:
            raise ConfigError(f"chroma-dense: k must be >= 1 and port 1 to 65535, not k={self.k}, port={self.port}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}[A-Za-z0-9]", self.collection):
            raise ConfigError(
                "chroma-dense: collection must be 3 to 64 letters, digits, '.', '_' or '-' that start and end with a "
                f"letter or digit, not {self.collection!r}"
            )

    def open(self, corpus: Corpus) -> Searcher:
        """Brings the mirror to the generation of `corpus`; a mirror that cannot be read is made anew."""
        if not len(corpus):
            return _ChromaSearcher(self, corpus, None, (), lambda: None)
        _, one = corpus.vectors([int(corpus.rows()[0])])
        check_dimension(one.shape[1], self.embedder.dimension, self.embedder.fingerprint)
        digest = _digest(corpus)
        if self.host:
            return self._open_on_server(corpus, digest)
        if digest is not None and os.access(corpus.directory, os.W_OK):
            found = self._open_in_directory(corpus, digest)
            if found is not None:
                return found
        return self._open_in_memory(corpus)

    def check(self, corpus: Corpus) -> list[str]:
        """The mirror in the index directory can be read and, when it is of this generation, agrees with the index.

        Another process reads it. A mirror of another generation is brought up to date at the next opening, and one on
        a server is not looked at.
        """
        folder = corpus.directory / _FOLDER
        if self.host or not folder.is_dir() or not len(corpus):
            return []
        cure = f"Delete the folder {folder}; it is filled again at the next search or ingestion"
        with FileLock(corpus.directory / _LOCK):
            found = look(folder, self.collection)
        if found is None:
            return [f"chroma-dense: the mirror {folder} cannot be read. {cure}"]
        told = found.get("metadata") or {}
        if (told.get("fingerprint"), told.get("generation")) != (self.embedder.fingerprint, corpus.generation):
            return []
        problems = disagreements(corpus, list(found["ids"]), record_ids(corpus), found["sample"])
        return [f"chroma-dense: the mirror {folder} {problem}. {cure}" for problem in problems]

    def audit(self, corpus: Corpus, *, vectors: bool = True) -> tuple[int, list[str]]:
        """(chunks that the mirror holds as the index does, what is wrong with the others); all of it is read back."""
        if self.host:
            with contextlib.closing(server_client(self.host, self.port)) as client:
                return self._compared(client, f"{self.collection}-{_place(corpus)}", corpus, vectors)
        folder = corpus.directory / _FOLDER
        if not folder.is_dir():
            return compare(corpus, (), _record_id)
        with FileLock(corpus.directory / _LOCK):
            with contextlib.closing(directory_client(folder)) as client:
                found = self._compared(client, self.collection, corpus, vectors)
            seal(folder)
        return found

    def _compared(self, client: Any, name: str, corpus: Corpus, vectors: bool) -> tuple[int, list[str]]:
        parts = held(client, name, self.embedder.fingerprint, vectors=vectors)
        return compare(corpus, parts, _record_id, tolerance=_TOLERANCE)

    def _open_on_server(self, corpus: Corpus, digest: str | None) -> Searcher:
        client = server_client(self.host, self.port)
        collection, ids = mirror(
            client, f"{self.collection}-{_place(corpus)}", corpus, self.embedder.fingerprint, digest
        )
        return _ChromaSearcher(self, corpus, collection, ids, client.close)

    def _open_in_directory(self, corpus: Corpus, digest: str) -> Searcher | None:
        """None when a newer generation is mirrored already: an older view must not take it back."""
        fingerprint, folder, lock = self.embedder.fingerprint, corpus.directory / _FOLDER, corpus.directory / _LOCK
        with FileLock(lock):  # Chroma allows one writing process
            client = directory_client(folder)
            if mirror_generation(client, self.collection, fingerprint) > corpus.generation:
                client.close()
                return None
            collection, ids = mirror(client, self.collection, corpus, fingerprint, digest)

        def close() -> None:
            client.close()
            with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):  # else somebody else is at work
                seal(folder)

        return _ChromaSearcher(self, corpus, collection, ids, close)

    def _open_in_memory(self, corpus: Corpus) -> Searcher:
        client = memory_client()
        name = f"view-{uuid.uuid4().hex}"  # all in-memory clients of a process see the same collections
        collection, ids = mirror(client, name, corpus, self.embedder.fingerprint, None)

        def close() -> None:
            client.delete_collection(name)
            client.close()

        return _ChromaSearcher(self, corpus, collection, ids, close)


class _ChromaSearcher(Searcher):
    def __init__(
        self,
        retriever: ChromaDenseRetriever,
        corpus: Corpus,
        collection: Any,
        ids: Sequence[str],
        close: Callable[[], None],
    ) -> None:
        self._retriever = retriever
        self._corpus = corpus
        self._collection = collection
        self._id_of = {row_of(record_id): record_id for record_id in ids}
        self._known = frozenset(ids)
        self._close = close

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if self._collection is None or k < 1:
            return []
        allowed = [int(row) for row in self._corpus.rows(where)] if where else list(self._id_of)
        if not allowed:
            return []
        vector = self._retriever.embedder.embed_question(question)
        wanted = max(_SPARE * k, _LEAST)
        while True:
            candidates = self._candidates(vector, wanted, allowed, restricted=bool(where))
            if len(candidates) < min(wanted, len(allowed)):  # the approximate search ran dry
                candidates = allowed
            rows, scores = exact_best(self._corpus, candidates, vector, len(candidates))
            if len(rows) <= k or len(rows) == len(allowed) or scores[k - 1] > scores[-1]:
                return to_hits(self._corpus, rows[:k], scores[:k], "chroma-dense")
            wanted *= 4  # the k-th is tied with the last: more are needed to order the ties by row

    def _candidates(self, vector: Vectors, wanted: int, allowed: Sequence[int], *, restricted: bool) -> list[int]:
        """Rows that Chroma finds near. Ids that this view does not know are of another generation, so they are left."""
        found = self._collection.query(
            query_embeddings=[vector],
            n_results=min(wanted, len(allowed)),
            ids=[self._id_of[row] for row in allowed] if restricted else None,
            include=[],
        )
        return [row_of(record_id) for record_id in found["ids"][0] if record_id in self._known]

    def close(self) -> None:
        if self._collection is not None:
            self._collection = None
            self._close()


def _place(corpus: Corpus) -> str:
    return hashlib.blake2b(str(corpus.directory.resolve()).encode(), digest_size=4).hexdigest()


def _record_id(row: int, chunk: Chunk) -> str:
    return f"{row}:{chunk.key}"


def _digest(corpus: Corpus) -> str | None:
    """The digest of this generation's record ids, kept as a derived file; None when it can be neither read nor kept."""
    marker = corpus.derived(MARKER)
    if marker is None:

        def write(path: Path) -> None:
            path.write_text(ids_digest(record_ids(corpus)), encoding="ascii")

        marker = corpus.publish(MARKER, write)
    return None if marker is None else marker.read_text(encoding="ascii")
