"""BM25 (Robertson & Zaragoza, "The Probabilistic Relevance Framework", 2009) on the full-text index of the store."""

from __future__ import annotations

from dataclasses import dataclass

from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Retriever, Searcher
from rag.types import Hit
from retrievers._words import query_words


@dataclass(frozen=True, kw_only=True)
class Bm25Retriever(Retriever):
    """Lexical search: any word of the question may match, rare words weigh more, long chunks weigh less.

    English stop words are left out of the question unless it has no other words; at most `max_words` different
    words are looked up, in the order of the question.
    """

    k: int = 40
    max_words: int = 64

    def __post_init__(self) -> None:
        if self.k < 1 or self.max_words < 1:
            raise ConfigError(f"bm25: k and max_words must be >= 1, not {self.k} and {self.max_words}")

    def open(self, corpus: Corpus) -> Searcher:
        return _Bm25Searcher(corpus, self.max_words)


class _Bm25Searcher(Searcher):
    def __init__(self, corpus: Corpus, max_words: int) -> None:
        self._corpus = corpus
        self._max_words = max_words

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        words = query_words(question)[: self._max_words]
        if not words or k < 1 or not len(self._corpus):
            return []
        found = self._corpus.lexical(words, k, where)
        chunks = self._corpus.chunks([row for row, _ in found])
        return [
            Hit(chunk=chunk, score=score, rank=rank, retriever="bm25", parts={"bm25": score})
            for rank, (chunk, (_, score)) in enumerate(zip(chunks, found, strict=True), start=1)
        ]

    def close(self) -> None:
        """Nothing is held open: the full-text index belongs to the store."""
