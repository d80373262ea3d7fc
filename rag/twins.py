"""Which new document is nearly the same as one that came before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rag.duplicates import SignatureIndex
    from rag.store.store import Store

__all__ = ["Twin", "Twins"]


@dataclass(frozen=True, slots=True)
class Twin:
    """The document that another one is nearly the same as."""

    doc_id: str
    source: str
    similarity: float


class Twins:
    """Finds, for one document after the other, the most similar one among those that came before it.

    Those in the store are loaded when the first new document comes, so that a run without any loads nothing.
    Documents whose file is gone do not count: they are about to be removed, or have moved.
    """

    def __init__(self, store: Store, threshold: float) -> None:
        self.threshold = threshold
        self._store = store
        self._made: SignatureIndex | None = None
        self._here: dict[str, str] = {}
        self._replaced: set[str] = set()

    def find(self, doc_id: str, source: str, signature: bytes) -> Twin | None:
        """The twin of a new document, or None."""
        for name, value in self._index.find(signature):
            if name == doc_id or name in self._replaced:
                continue
            other = self._here.get(name) or self._stored(name)
            if other not in (None, source):
                return Twin(name, str(other), round(value, 4))
        return None

    def add(self, doc_id: str, source: str, signature: bytes) -> None:
        """A document that goes into the index now."""
        self._replaced.discard(doc_id)
        self._here[doc_id] = source
        self._index.add(doc_id, signature)

    def drop(self, doc_id: str) -> None:
        """A document whose place another text takes now."""
        self._replaced.add(doc_id)
        self._here.pop(doc_id, None)

    def commit(self) -> None:
        """What was added is in the store now."""
        self._here.clear()

    def is_there(self, doc_id: str) -> bool:
        """True while the document is in the store and its file exists."""
        return self._stored(doc_id) is not None

    def _stored(self, doc_id: str) -> str | None:
        place = self._store.place(doc_id)
        return place[0] if place and any(Path(origin).exists() for origin in place[1]) else None

    @property
    def _index(self) -> SignatureIndex:
        if self._made is None:
            from rag.duplicates import SignatureIndex

            self._made = SignatureIndex(self.threshold)
            self._made.load(self._store.signatures())
        return self._made
