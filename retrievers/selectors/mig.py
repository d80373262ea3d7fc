"""Greedy selection by marginal information gain, lazily evaluated (Minoux 1978)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, service
from rag.spans.choice import SpanChoice
from rag.spans.features import pool_of
from rag.spans.filling import Filling
from rag.spans.units import units_of
from rag.types import Bubble, Hit


@dataclass(frozen=True, kw_only=True)
class MigSelector(Selector):
    """Takes what adds most: relevance - lam * (largest similarity with what is chosen) + coverage of question words.

    `unit`: sentences of the hits, or chunks. Relevance is cos(question, sentence) + cos(question, chunk) +
    `lexical` * (BM25 of both). Both terms that depend on the selection only fall as it grows, so a gain that was
    computed earlier is a bound and few are computed again. At `unit: chunk`, chunks that overlap are cut at their
    borders, so that no character is paid for twice.
    """

    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    budget: int = 1200
    unit: Literal["sentence", "chunk"] = "sentence"
    lam: float = 0.6
    lexical: float = 0.5
    coverage: float = 0.3
    pool: int = 160
    unit_chars: int = 600

    def __post_init__(self) -> None:
        if self.unit not in ("sentence", "chunk"):
            raise ConfigError(f"mig: unit must be sentence or chunk, not {self.unit!r}")
        for name, low in (("budget", 1), ("pool", 1), ("unit_chars", 20)):
            if getattr(self, name) < low:
                raise ConfigError(f"mig: {name} must be >= {low}, not {getattr(self, name)}")
        for name in ("lam", "lexical", "coverage"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ConfigError(f"mig: {name} must be between 0 and 100, not {getattr(self, name)}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        import numpy as np

        whole = self.unit == "chunk"
        units = units_of(hits, corpus, None if whole else self.unit_chars)
        weights = (1.0, 1.0, 0.0, self.lexical, self.lexical, 0.0)
        pool = pool_of(question, units, corpus, self.embedder, weights, self.pool, whole=whole)
        twins = [number for number, twin in enumerate(units.twins) if twin >= 0]
        filling = Filling(units, [*pool.numbers, *twins], self.counter, self.budget)
        values = pool.parts @ np.asarray(weights)
        choice = SpanChoice(units, pool, values, filling, lam=self.lam, coverage=self.coverage)
        return choice.run(question)
