"""What retrievers around another retriever share: one inner searcher, and scores of several lists as one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Generator, Retriever, Searcher, TextModel
from rag.types import Chunk, Hit

__all__ = ["WrappedSearcher", "Wrapper", "merged", "needed_model", "pool_of"]

_LEAST_POOL = 50


class Wrapper(Retriever):
    """A retriever whose field `retriever` holds another one; it reads vectors, and keeps files, as that one does."""

    retriever: Any

    @property
    def uses_vectors(self) -> bool:
        return bool(self.retriever.uses_vectors)

    def check(self, corpus: Corpus) -> list[str]:
        """What the inner retriever finds."""
        problems: list[str] = self.retriever.check(corpus)
        return problems


def pool_of(pool: int, k: int) -> int:
    """How many hits each list has: `pool`, by default 50, and at least k."""
    return max(pool or _LEAST_POOL, k)


def needed_model(generator: Generator | None, who: str) -> TextModel:
    """The language model behind the pipeline's generator; ConfigError where there is none."""
    model = generator.text_model if generator is not None else None
    if model is None:
        raise ConfigError(
            f"{who} writes with a language model, and this pipeline's generator has none. "
            "Set generator: local or generator: openai, or take another retriever"
        )
    return model


def merged(
    corpus: Corpus, lists: Mapping[str, Sequence[Hit]], values: Mapping[str, Mapping[str, float]], name: str, k: int
) -> list[Hit]:
    """The best k chunks by the sum of `values[list][chunk id]`, ties by row; `parts` keeps each list's score."""
    chunks: dict[str, Chunk] = {}
    parts: dict[str, dict[str, float]] = {}
    for label, hits in lists.items():
        for hit in hits:
            chunks.setdefault(hit.chunk.id, hit.chunk)
            parts.setdefault(hit.chunk.id, {}).update({label: hit.score, f"{label}.rank": float(hit.rank)})
    scores = {chunk_id: round(sum(of[chunk_id] for of in values.values() if chunk_id in of), 12) for chunk_id in chunks}
    row_of = dict(zip(scores, corpus.rows_of(list(scores)), strict=True))
    order = sorted(scores, key=lambda chunk_id: (-scores[chunk_id], row_of[chunk_id]))[:k]
    return [
        Hit(chunk=chunks[one], score=scores[one], rank=rank, retriever=name, parts=parts[one])
        for rank, one in enumerate(order, start=1)
    ]


class WrappedSearcher(Searcher):
    """Holds the inner searcher and closes it."""

    def __init__(self, corpus: Corpus, inner: Searcher) -> None:
        self._corpus = corpus
        self._inner = inner

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        return self._inner.search(question, k, where)

    def close(self) -> None:
        self._inner.close()
