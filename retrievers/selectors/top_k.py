"""The plain selector: best hits first, until the budget is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag.errors import ConfigError
from rag.protocols import Corpus, Selector, TokenCounter, service
from rag.types import Bubble, Hit
from retrievers.selectors._ledger import Selection


@dataclass(frozen=True, kw_only=True)
class TopKSelector(Selector):
    """Takes hits by rank while the assembled text fits into `budget` tokens, at most `k` of them (0: no limit).

    It stops at the first hit that does not fit, so that a larger budget never gives less text.
    """

    counter: TokenCounter = service()
    budget: int = 1200
    k: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1 or self.k < 0:
            raise ConfigError(f"top-k: budget must be >= 1 and k >= 0, not budget={self.budget}, k={self.k}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        selection = Selection(self.counter, self.budget)
        for hit in sorted(hits, key=lambda hit: hit.rank):
            if self.k and len(selection.chosen) >= self.k:
                selection.pass_over(hit, "skip-rank", f"{self.k} hits were taken before it")
            else:
                selection.offer(hit, "take", f"rank {hit.rank}", gain=hit.score)
        return selection.bubble(question)
