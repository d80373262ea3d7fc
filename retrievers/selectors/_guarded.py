"""A corpus without the chunks that a verifier refuses, for selectors that look beyond their hits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag.protocols import Corpus, Filter
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.protocols import Rows, Vectors

__all__ = ["GuardedCorpus"]


class GuardedCorpus(Corpus):
    """Another corpus whose `neighbours` and `lexical` leave out what `refused` is true for. All else is that one's."""

    def __init__(self, corpus: Corpus, refused: Callable[[Chunk], bool]) -> None:
        self.directory = corpus.directory
        self.generation = corpus.generation
        self._corpus = corpus
        self._refused = refused

    def __len__(self) -> int:
        return len(self._corpus)

    def neighbours(self, chunk_id: str, before: int, after: int) -> list[Chunk]:
        return [chunk for chunk in self._corpus.neighbours(chunk_id, before, after) if not self._refused(chunk)]

    def lexical(self, words: Sequence[str], k: int, where: Filter | None = None) -> list[tuple[int, float]]:
        found = self._corpus.lexical(words, k, where)
        chunks = self._corpus.chunks([row for row, _ in found])
        return [one for one, chunk in zip(found, chunks, strict=True) if not self._refused(chunk)]

    def chunks(self, rows: Sequence[int]) -> list[Chunk]:
        return self._corpus.chunks(rows)

    def rows(self, where: Filter | None = None) -> Rows:
        return self._corpus.rows(where)

    def rows_of(self, chunk_ids: Sequence[str]) -> list[int]:
        return self._corpus.rows_of(chunk_ids)

    def vectors(self, rows: Sequence[int] | None = None) -> tuple[Rows, Vectors]:
        return self._corpus.vectors(rows)

    def vector_parts(self, size: int) -> Iterator[tuple[Rows, Vectors]]:
        return self._corpus.vector_parts(size)

    def document(self, doc_id: str) -> Document:
        return self._corpus.document(doc_id)

    def derived(self, name: str) -> Path | None:
        return self._corpus.derived(name)

    def derived_of_any(self, name: str) -> Path | None:
        return self._corpus.derived_of_any(name)

    def publish(self, name: str, write: Callable[[Path], None]) -> Path | None:
        return self._corpus.publish(name, write)
