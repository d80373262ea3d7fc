"""Embeds the sentences of stored documents before anybody asks: the same texts that selectors will want."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import IndexDamagedError
from rag.spans.features import UNIT_CHARS, embeddable
from rag.spans.units import units_of
from rag.store.database import Database, batches, marks
from rag.store.sentences import SentenceFile, text_key
from rag.types import Hit

if TYPE_CHECKING:
    from rag.protocols import Corpus, Embedder
    from rag.store.store import Store
    from rag.types import Chunk

__all__ = ["keep_sentences"]

_TEXTS = 512
"""Texts that are embedded, and made durable, together."""
_WAIT_SECONDS = 5.0


def keep_sentences(store: Store, embedder: Embedder, doc_ids: Collection[str] | None = None) -> int:
    """Keep the vectors of all sentences of these documents (None: of all); the number of texts embedded.

    A document whose sentences are kept is not read again. Stops early, without harm, when the file is full or cannot
    be written: what is missing is embedded when it is needed.
    """
    kept = SentenceFile(store.directory, embedder)
    found = _documents(store.directory, doc_ids)
    done, embedded = kept.done([key for _, key in found]), 0
    wanted = [pair for pair in found if pair[1] not in done]
    texts: dict[bytes, str] = {}
    keys: list[bytes] = []
    with store.corpus() as corpus:
        for number, (doc_id, key) in enumerate(wanted, start=1):
            with contextlib.suppress(IndexDamagedError):  # `rag verify` tells; here it only stays without
                said = _sentences(store.chunks_of(doc_id), corpus, embedder)
                texts.update((text_key(text), text) for text in said)
                keys.append(key)
            if len(texts) >= _TEXTS or number == len(wanted):
                made, is_kept = _keep(kept, embedder, texts, keys)
                embedded += made
                if not is_kept:
                    break
                texts, keys = {}, []
    return embedded


def _keep(
    kept: SentenceFile, embedder: Embedder, texts: Mapping[bytes, str], documents: Sequence[bytes]
) -> tuple[int, bool]:
    """Embed what is missing and make it durable, in parts: how many, and False when there is no place for more."""
    keys, embedded = list(texts), 0
    for at in range(0, len(keys), _TEXTS):
        part = keys[at : at + _TEXTS]
        known = kept.read(part)
        missing = [key for key in part if key not in known]
        if missing and kept.is_full:
            return embedded, False
        if missing:
            made = embedder.embed([texts[key] for key in missing])
            embedded += len(missing)
            if not kept.add(dict(zip(missing, made, strict=True)), wait=_WAIT_SECONDS):
                return embedded, False
    return embedded, kept.add({}, documents, wait=_WAIT_SECONDS)


def _sentences(chunks: list[Chunk], corpus: Corpus, embedder: Embedder) -> list[str]:
    """What selectors may embed of a document: the units of each chunk alone, and of all where chunks overlap."""
    hits = [Hit(chunk=chunk, score=0.0, rank=rank, retriever="") for rank, chunk in enumerate(chunks, start=1)]
    groups = [[hit] for hit in hits]
    if any(one.span.end > other.span.start for one, other in pairwise(chunks)):
        groups.append(hits)
    found = (unit.text for group in groups for unit in units_of(group, corpus, UNIT_CHARS).units)
    return [embeddable(text, embedder) for text in dict.fromkeys(text.strip() for text in found) if text]


def _documents(directory: Path, doc_ids: Collection[str] | None) -> list[tuple[str, bytes]]:
    """(document id, a key that changes when it is cut otherwise) of those documents, or of all, in reading order."""
    sql = (
        "SELECT d.doc_id, (SELECT group_concat(at) FROM (SELECT c.start || '-' || c.stop AS at FROM chunks c "
        "WHERE c.document = d.id ORDER BY c.id)) FROM documents d"
    )
    db = Database(directory, writable=False)
    try:
        if doc_ids is None:
            rows = db.rows(f"{sql} ORDER BY d.id")
        else:
            parts = batches(sorted(doc_ids))
            rows = [row for part in parts for row in db.rows(f"{sql} WHERE d.doc_id IN ({marks(part)})", part)]
    finally:
        db.close()
    return [
        (doc_id, hashlib.blake2b(f"{UNIT_CHARS} {doc_id} {cuts}".encode(), digest_size=16).digest())
        for doc_id, cuts in rows
    ]
