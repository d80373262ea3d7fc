"""Small-to-big: children that were found become the parent they were cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag.errors import ConfigError
from rag.protocols import Corpus, Selector, TokenCounter, service
from rag.types import Bubble, Chunk, Hit
from retrievers.selectors._ledger import Selection


@dataclass(frozen=True, kw_only=True)
class AutoMergeSelector(Selector):
    """Takes the whole parent when at least `ratio` of its children are hits.

    A parent is a `Chunk.parent` span, and its text all chunks of the index with that parent. Parents are taken by
    score, the best score of their hits + `bonus` * the positive scores of the others; of a parent first the hits by
    rank, then its other children in reading order. A parent with fewer hits gives those hits only, and a chunk without
    a parent stands for itself. With a budget that ends inside of a parent, the children that come last are left out.
    """

    counter: TokenCounter = service()
    budget: int = 1200
    ratio: float = 0.5
    bonus: float = 0.1

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigError(f"auto-merge: budget must be >= 1, not {self.budget}")
        if not 0.0 < self.ratio <= 1.0 or not 0.0 <= self.bonus <= 1.0:
            raise ConfigError(
                "auto-merge: ratio must be above 0 and at most 1, and bonus between 0 and 1, "
                f"not ratio={self.ratio}, bonus={self.bonus}"
            )

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        selection = Selection(self.counter, self.budget)
        families: dict[object, list[Hit]] = {}
        for hit in sorted(hits, key=lambda hit: hit.rank):
            chunk = hit.chunk
            families.setdefault((chunk.doc_id, chunk.parent) if chunk.parent else chunk.id, []).append(hit)
        for family in sorted(families.values(), key=lambda family: (-self._score(family), family[0].rank)):
            self._offer(selection, family, corpus)
        return selection.bubble(question)

    def _score(self, family: Sequence[Hit]) -> float:
        scores = sorted((hit.score for hit in family), reverse=True)
        return round(scores[0] + self.bonus * sum(score for score in scores[1:] if score > 0), 6)

    def _offer(self, selection: Selection, family: Sequence[Hit], corpus: Corpus) -> None:
        best, score = family[0], self._score(family)
        children = siblings(best.chunk, corpus) if best.chunk.parent else [best.chunk]
        found = {hit.chunk.id for hit in family}
        for hit in family:
            selection.offer(hit, "take", f"rank {hit.rank}; {len(family)} of {len(children)} children hit", gain=score)
        if len(family) < self.ratio * len(children):
            return
        for chunk in children:
            if chunk.id not in found:
                added = Hit(chunk=chunk, score=0.0, rank=best.rank, retriever=best.retriever)
                reason = f"{len(family)} of {len(children)} children of its parent are hits"
                selection.offer(added, "merge", reason, gain=score)


def siblings(chunk: Chunk, corpus: Corpus) -> list[Chunk]:
    """All chunks with the parent of `chunk`, itself included, in reading order; they lie side by side."""
    size, count = 8, -1
    while True:
        around = corpus.neighbours(chunk.id, size, size)
        family = [one for one in around if one.parent == chunk.parent]
        outer = around and (around[0].parent == chunk.parent or around[-1].parent == chunk.parent)
        if not outer or len(around) == count:
            return sorted([chunk, *family], key=lambda one: (one.span, one.id))
        size, count = 2 * size, len(around)
