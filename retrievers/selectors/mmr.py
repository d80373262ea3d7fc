"""Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.errors import ConfigError
from rag.protocols import Corpus, Selector, TokenCounter, service
from rag.text import lexical_words
from rag.types import Bubble, Hit
from retrievers.selectors._ledger import Selection

if TYPE_CHECKING:
    from rag.protocols import Vectors


@dataclass(frozen=True, kw_only=True)
class MmrSelector(Selector):
    """Takes again and again the hit with the largest lam * relevance - (1 - lam) * redundancy.

    Redundancy is the largest cosine with a taken hit (Jaccard of the words when the index has no vectors).
    The popular lam = 0.5 loses much recall where little is redundant; 0.9 does not, so it is the default.

    Deviations: relevance is the retriever's score, min-max scaled over the pool, since scores of BM25 or of a fusion
    have no common scale with cosines. The stop rule is the token budget, not a number of documents.
    """

    counter: TokenCounter = service()
    budget: int = 1200
    lam: float = 0.9
    pool: int = 50

    def __post_init__(self) -> None:
        if self.budget < 1 or self.pool < 1:
            raise ConfigError(f"mmr: budget and pool must be >= 1, not budget={self.budget}, pool={self.pool}")
        if not 0.0 <= self.lam <= 1.0:
            raise ConfigError(f"mmr: lam must be between 0 and 1, not {self.lam}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        import numpy as np

        ranked = sorted(hits, key=lambda hit: hit.rank)
        pool = ranked[: self.pool]
        selection = Selection(self.counter, self.budget)
        similarity = _similarity(pool, corpus)
        relevance = _scaled([hit.score for hit in pool])
        redundancy = np.zeros(len(pool))
        open_at = list(range(len(pool)))
        while open_at:
            gains = {at: self.lam * relevance[at] - (1 - self.lam) * redundancy[at] for at in open_at}
            at = max(open_at, key=lambda place: (round(gains[place], 9), -place))
            open_at.remove(at)
            reason = f"rank {pool[at].rank}, scaled relevance {relevance[at]:.3f}"
            selection.offer(pool[at], "take", reason, gain=float(gains[at]), redundancy=float(redundancy[at]))
            if pool[at] in selection.chosen:
                redundancy = np.maximum(redundancy, similarity[at])
        for hit in ranked[self.pool :]:
            selection.pass_over(hit, "skip-rank", f"outside of the pool of {self.pool}")
        return selection.bubble(question)


def _scaled(scores: Sequence[float]) -> list[float]:
    """Min-max to [0, 1]; equal scores all become 1."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _similarity(hits: Sequence[Hit], corpus: Corpus) -> Vectors:
    """(n, n) similarity of the hits in [0, 1] for most pairs: cosines, or word overlap without vectors."""
    import numpy as np

    if not hits:
        return np.zeros((0, 0), dtype=np.float32)
    try:
        _, matrix = corpus.vectors(corpus.rows_of([hit.chunk.id for hit in hits]))
    except ConfigError:  # the index was made without an embedder
        words = [frozenset(lexical_words(hit.chunk.text)) for hit in hits]
        overlap = [[len(a & b) / (len(a | b) or 1) for b in words] for a in words]
        return np.array(overlap, dtype=np.float32)
    return matrix @ matrix.T
