"""Keeps a Chroma collection equal to a corpus. Chroma is a mirror: the store stays the only owner of the data.

Record ids are `row:key` (row of the chunk, hash of its content), so that a record can only ever stand for the
content that it was made from, even when a later generation gives the row to another chunk.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rag.errors import RagError, missing_extra
from retrievers._chroma_probe import is_sound

if TYPE_CHECKING:
    from rag.protocols import Corpus, Vectors

_Item = TypeVar("_Item")

MARKER = "chroma-mirror.digest"
"""Derived file of the corpus: the digest of all record ids of this generation. A mirror with these ids is in step."""

_READ_AT_ONCE = 4096
_VECTORS_AT_ONCE = 1000


def chroma_settings() -> tuple[Any, Any]:
    """(module chromadb, settings with telemetry off)."""
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise missing_extra("chromadb", "chroma", "The retriever chroma-dense") from error
    return chromadb, Settings(anonymized_telemetry=False)


def server_client(host: str, port: int) -> Any:
    """A client of a running Chroma server; RagError when nothing answers there."""
    chromadb, settings = chroma_settings()
    try:
        return chromadb.HttpClient(host=host, port=port, settings=settings)
    except Exception as error:  # chromadb raises ValueError, httpx and its own errors here
        raise RagError(
            f"no Chroma server answers at {host}:{port} ({error}); start one with "
            f"`chroma run --path DIR --host {host} --port {port}`, or leave `host` empty"
        ) from error


def directory_client(path: Path) -> Any:
    """A client of the mirror in `path`. A mirror that cannot be read is removed first, to be filled again."""
    chromadb, settings = chroma_settings()
    if path.exists() and not is_sound(path):
        shutil.rmtree(path)
    return chromadb.PersistentClient(str(path), settings=settings)


def memory_client() -> Any:
    """A client that writes no files. All of one process share one database: use unique collection names."""
    chromadb, settings = chroma_settings()
    return chromadb.EphemeralClient(settings=settings)


def mirror(client: Any, name: str, corpus: Corpus, fingerprint: str, digest: str | None) -> tuple[Any, list[str]]:
    """The collection `name`, made equal to `corpus`, and its record ids in row order.

    `digest` is what MARKER holds: a collection with these very ids is taken as it is. Without it, or with other ids,
    stale records are deleted and missing ones added.
    """
    collection = _collection(client, name, fingerprint)
    present = sorted(collection.get(include=[])["ids"], key=row_of)
    if digest is not None and ids_digest(present) == digest:
        return collection, present
    wanted = record_ids(corpus)
    size = client.get_max_batch_size()
    for part in _batches(sorted(set(present).difference(wanted)), size):
        collection.delete(ids=part)
    have = set(present)
    for part in _batches([record_id for record_id in wanted if record_id not in have], size):
        _, matrix = corpus.vectors([row_of(record_id) for record_id in part])
        collection.add(ids=part, embeddings=matrix)
    collection.modify(metadata=_metadata(fingerprint, corpus.generation))
    return collection, wanted


def mirror_generation(client: Any, name: str, fingerprint: str) -> int:
    """The generation that the collection was last made equal to; 0 for a new one."""
    return int(_collection(client, name, fingerprint).metadata.get("generation", 0))


def held(
    client: Any, name: str, fingerprint: str, *, vectors: bool
) -> Iterator[tuple[list[int], list[str], Vectors | None]]:
    """(rows, record ids, vectors) of everything that the collection holds; nothing of one of another model."""
    import numpy as np

    if name not in {collection.name for collection in client.list_collections()}:
        return
    collection = client.get_collection(name, embedding_function=None)
    if (collection.metadata or {}).get("fingerprint") != fingerprint:
        return
    ids = sorted(collection.get(include=[])["ids"], key=row_of)
    for part in _batches(ids, _VECTORS_AT_ONCE):
        matrix = None
        if vectors:
            found = collection.get(ids=part, include=["embeddings"])
            vector_of = dict(zip(found["ids"], found["embeddings"], strict=True))
            matrix = np.array([vector_of[record_id] for record_id in part], dtype=np.float32)
        yield [row_of(record_id) for record_id in part], part, matrix


def record_ids(corpus: Corpus) -> list[str]:
    """Record ids of all chunks, in row order."""
    rows = [int(row) for row in corpus.rows()]
    found: list[str] = []
    for part in _batches(rows, _READ_AT_ONCE):
        found.extend(f"{row}:{chunk.key}" for row, chunk in zip(part, corpus.chunks(part), strict=True))
    return found


def row_of(record_id: str) -> int:
    """The row that a record stands for."""
    return int(record_id.partition(":")[0])


def ids_digest(record_ids: Sequence[str]) -> str:
    """One name for the content of a whole generation."""
    return hashlib.blake2b("\n".join(record_ids).encode(), digest_size=16).hexdigest()


def _collection(client: Any, name: str, fingerprint: str) -> Any:
    """The collection of that name with vectors of that fingerprint; an older one of another model is dropped."""
    known = {collection.name for collection in client.list_collections()}
    if name in known:
        found = client.get_collection(name, embedding_function=None)
        if (found.metadata or {}).get("fingerprint") == fingerprint:
            return found
        client.delete_collection(name)
    return client.create_collection(
        name,
        configuration={"hnsw": {"space": "cosine"}},  # Chroma's own default is l2
        embedding_function=None,  # otherwise Chroma may download a model
        metadata=_metadata(fingerprint, 0),
    )


def _metadata(fingerprint: str, generation: int) -> dict[str, Any]:
    return {"fingerprint": fingerprint, "generation": generation}


def _batches(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
