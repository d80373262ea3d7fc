"""What goes into the store and what it lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DocumentInfo", "Entry", "FileRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """The bookkeeping of one input. `error` says why the input is quarantined; a `doc_id` beside it is its last
    good version, which stays searchable.

    `origin` (absolute resolved path, or URI) is unique; `recipe` names how the bytes became chunks (parser and its
    version, chunker, embedder), so that a changed config is seen.
    """

    origin: str
    source: str
    content_hash: str
    size_bytes: int
    mtime_ns: int
    recipe: str
    doc_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One input, ready to be committed.

    `vectors` maps chunk keys to (dimension,) vectors, only those that the store does not have under `fingerprint`;
    without a fingerprint no vectors are stored. `decision` (JSON) says why this document got its chunker.
    `signature` is what near-duplicates are recognised by (rag.duplicates).
    """

    file: FileRecord
    document: Document
    chunks: tuple[Chunk, ...]
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    fingerprint: str | None = None
    decision: Mapping[str, Any] | None = None
    signature: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentInfo:
    """A line of the list of documents. `chars` counts code points."""

    id: str
    source: str
    title: str
    origins: tuple[str, ...]
    chunks: int
    chars: int
    decision: Mapping[str, Any] | None
