"""Keeping hits until their scores fall away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, service
from rag.types import Bubble, Hit
from retrievers.selectors._ledger import Selection


@dataclass(frozen=True, kw_only=True)
class GradientSelector(Selector):
    """Gradient selection (SAGE, arXiv 2503.01713), by one of two rules; the first `min_k` hits are always kept.

    `share-of-best`, the default: keeps every hit with at least `r` times the largest score, where scores are cosines of
    question and chunk. Without an embedder, or without vectors in the index, they are those of the retriever.
    `ratio`, the paper's: keeps hits while a score is at least `g` times the one before it, and ends at the first drop.
    Scores are those of the retriever and must be calibrated, as those of a cross-encoder with a sigmoid: the rule says
    little on cosines and nothing on ranks. The paper's constants, as far as known, are min_k 7 and g .3.

    Deviations: hits are taken in the order of the retriever, under a token budget. A score of 0 or less ends `ratio`.
    Where no score is above 0, `share-of-best` keeps `min_k` hits.
    """

    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    budget: int = 1200
    rule: Literal["share-of-best", "ratio"] = "share-of-best"
    min_k: int = 1
    r: float = 0.7
    g: float = 0.3

    def __post_init__(self) -> None:
        if self.rule not in ("share-of-best", "ratio"):
            raise ConfigError(f"gradient: rule must be share-of-best or ratio, not {self.rule!r}")
        if self.budget < 1 or self.min_k < 1:
            raise ConfigError(f"gradient: budget and min_k must be >= 1, not {self.budget}, {self.min_k}")
        for name in ("r", "g"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"gradient: {name} must be between 0 and 1, not {getattr(self, name)}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        ranked = sorted(hits, key=lambda hit: hit.rank)
        selection = Selection(self.counter, self.budget)
        if self.rule == "ratio":
            scores = [round(hit.score, 6) for hit in ranked]
            kept = until_drop(scores, self.g, self.min_k)
        else:
            scores = self._scores(question, ranked, corpus)
            kept = share_of_best(scores, self.r, self.min_k)
        for hit, score, keep in zip(ranked, scores, kept, strict=True):
            if keep:
                selection.offer(hit, "take", f"rank {hit.rank}, score {score:.3f}", gain=score)
            else:
                selection.skip(hit, "skip-drop", f"score {score:.3f} is too low by the rule {self.rule}", gain=score)
        return selection.bubble(question)

    def _scores(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> list[float]:
        """Cosines with the question, rounded; scores of the retriever where there are no vectors."""
        if self.embedder is not None and hits:
            try:
                _, matrix = corpus.vectors(corpus.rows_of([hit.chunk.id for hit in hits]))
            except ConfigError:  # the index was made without an embedder
                pass
            else:
                return [round(float(cosine), 6) for cosine in matrix @ self.embedder.embed_question(question)]
        return [round(hit.score, 6) for hit in hits]


def until_drop(scores: Sequence[float], g: float, min_k: int) -> list[bool]:
    """Which to keep: the first `min_k`, then as long as a score is above 0 and >= g * the one before it."""
    kept = [True] * min(min_k, len(scores))
    for before, score in zip(scores[len(kept) - 1 :], scores[len(kept) :], strict=False):
        kept.append(kept[-1] and score > 0 and score >= g * before)
    return kept


def share_of_best(scores: Sequence[float], r: float, min_k: int) -> list[bool]:
    """Which to keep: the first `min_k`, and those with a score above 0 and >= r * the largest."""
    best = max(scores, default=0.0)
    return [at < min_k or (score > 0 and score >= r * best) for at, score in enumerate(scores)]
