"""What rerankers share: the first hits of an inner retriever in a new order, with both scores on every hit."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Searcher
from rag.types import Chunk, Hit
from retrievers._wrapped import WrappedSearcher, Wrapper

__all__ = ["Reranker", "Scored", "Scorer", "check_numbers", "min_max"]

Scored = tuple[float, Mapping[str, float]]
"""The score of one chunk, higher is better, and what else `Hit.parts` shall say of it."""

Scorer = Callable[[str, Sequence[Chunk]], Sequence[Scored]]
"""(question, chunks of the pool) -> one entry a chunk, in order; the same entries for the same pool."""


class Reranker(Wrapper):
    """A retriever that asks `retriever` for a pool of hits and scores the first `pool` of them anew.

    score = weight * own score + (1 - weight) * first score, the first score min-max scaled inside the pool; ties by
    row. The own score is scaled likewise, unless `natural` says that it lies in [0, 1] as it is. Hits after the pool,
    which are there only when more than `pool` are asked for, keep their order, with scores below 0. `Hit.parts` keeps
    those of the first stage, its score and rank under its name, and the own score under `name`.
    """

    name: ClassVar[str]
    natural: ClassVar[bool] = False

    retriever: Any
    pool: int
    weight: float

    @abstractmethod
    def scorer(self, corpus: Corpus) -> Scorer:
        """What scores a pool; ConfigError where something that it needs is not there."""

    def open(self, corpus: Corpus) -> Searcher:
        scorer = self.scorer(corpus)  # first: it refuses before anything is open
        return _RerankSearcher(self, corpus, self.retriever.open(corpus), scorer)


def check_numbers(reranker: Reranker) -> None:
    """The ranges of the fields that all rerankers have."""
    if reranker.k < 1 or reranker.pool < 1 or not 0 < reranker.weight <= 1:
        raise ConfigError(
            f"{reranker.name}: k and pool must be >= 1 and 0 < weight <= 1, not k={reranker.k}, "
            f"pool={reranker.pool}, weight={reranker.weight}"
        )


def min_max(scores: Sequence[float]) -> list[float]:
    """Scores scaled to [0, 1]; equal scores all become 1."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


class _RerankSearcher(WrappedSearcher):
    def __init__(self, reranker: Reranker, corpus: Corpus, inner: Searcher, scorer: Scorer) -> None:
        super().__init__(corpus, inner)
        self._reranker = reranker
        self._scorer = scorer

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if k < 1:
            return []
        pool = self._reranker.pool
        found = self._inner.search(question, max(pool, k), where)
        if not found:
            return []
        first, rest = found[:pool], found[pool:]
        return self._ranked([*self._reranked(question, first), *self._left(first, rest)][:k])

    def _reranked(self, question: str, hits: Sequence[Hit]) -> list[tuple[float, Hit, Mapping[str, float]]]:
        one = self._reranker
        scored = self._scorer(question, [hit.chunk for hit in hits])
        known = [score for score, _ in scored if math.isfinite(score)]
        worst = min(known, default=0.0)  # a score that is no number tells nothing for the chunk
        own = [score if math.isfinite(score) else worst for score, _ in scored]
        new = [round(score, 6) for score in own]
        if not one.natural:
            new = min_max(new)
        before = min_max([hit.score for hit in hits])
        mixed = [round(one.weight * a + (1 - one.weight) * b, 6) for a, b in zip(new, before, strict=True)]
        rows = self._corpus.rows_of([hit.chunk.id for hit in hits])
        order = sorted(range(len(hits)), key=lambda at: (-mixed[at], rows[at]))
        return [(mixed[at], hits[at], {**scored[at][1], one.name: own[at]}) for at in order]

    def _left(self, first: Sequence[Hit], rest: Sequence[Hit]) -> list[tuple[float, Hit, Mapping[str, float]]]:
        """Not scored anew: min-max scaled by the pool, which gives 0 at most, and 1 less to lie below the pool."""
        low, high = first[-1].score, first[0].score
        size = high - low if high > low else 1.0
        return [((hit.score - low) / size - 1.0, hit, {}) for hit in rest]

    def _ranked(self, entries: Sequence[tuple[float, Hit, Mapping[str, float]]]) -> list[Hit]:
        made = []
        for rank, (score, hit, parts) in enumerate(entries, start=1):
            before = {hit.retriever: hit.score, f"{hit.retriever}.rank": float(hit.rank)}
            every = {**hit.parts, **before, **parts}
            made.append(Hit(chunk=hit.chunk, score=score, rank=rank, retriever=self._reranker.name, parts=every))
        return made
