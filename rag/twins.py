"""Which new document is nearly the same as one that came before it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import missing_extra

if TYPE_CHECKING:
    from rag.store.store import Store

__all__ = ["Twin", "Twins", "usable"]


@dataclass(frozen=True, slots=True)
class Twin:
    """The document that another one is nearly the same as."""

    doc_id: str
    source: str
    similarity: float


class Twins:
    """Finds, for one document after the other, the most similar one among those that came before it.

    What is committed is looked up in the store, so that nothing is loaded; the documents that wait for it are held
    here. Documents whose file is gone do not count: they are about to be removed, or have moved.
    """

    def __init__(self, store: Store, threshold: float) -> None:
        self.threshold = threshold
        self._store = store
        self._here: dict[str, tuple[str, bytes]] = {}
        self._replaced: set[str] = set()

    def find(self, doc_id: str, source: str, signature: bytes) -> Twin | None:
        """The twin of a new document, or None; the oldest of those that are equally alike."""
        from rag.duplicates import similarity

        held = dict(self._store.find_alike(signature, self.threshold))
        held |= {name: here for name, (_, here) in self._here.items()}
        alike = [(similarity(signature, other), name) for name, other in held.items()]
        for value, name in sorted(alike, key=lambda pair: -pair[0]):
            if value < self.threshold:
                break
            if name == doc_id or name in self._replaced:
                continue
            other = self._here[name][0] if name in self._here else self._stored(name)
            if other not in (None, source):
                return Twin(name, str(other), round(value, 4))
        return None

    def add(self, doc_id: str, source: str, signature: bytes) -> None:
        """A document that goes into the index now."""
        self._replaced.discard(doc_id)
        self._here[doc_id] = source, signature

    def drop(self, doc_id: str) -> None:
        """A document whose place another text takes now."""
        self._replaced.add(doc_id)
        self._here.pop(doc_id, None)

    def commit(self, doc_ids: Iterable[str]) -> None:
        """These are in the store now."""
        for doc_id in doc_ids:
            self._here.pop(doc_id, None)

    def is_there(self, doc_id: str) -> bool:
        """True while the document is in the store and its file exists."""
        return self._stored(doc_id) is not None

    def _stored(self, doc_id: str) -> str | None:
        place = self._store.place(doc_id)
        return place[0] if place and any(Path(origin).exists() for origin in place[1]) else None


def usable(near_duplicates: str) -> str:
    """`near_duplicates` as this installation can do it; nothing is imported.

    Without datasketch `report` becomes `off`, with a warning; `skip` decides what is in an index, so that doing
    without is a MissingError.
    """
    if near_duplicates == "off" or find_spec("datasketch") is not None:
        return near_duplicates
    error = missing_extra("datasketch", "dedup", f"near_duplicates: {near_duplicates} (turn it off to do without)")
    if near_duplicates == "skip":
        raise error
    logging.getLogger(__name__).warning("near-duplicates are not looked for: %s", error)
    return "off"
