"""What selectors share: the growing selection under its budget, and the ledger of decisions about it."""

from __future__ import annotations

from collections.abc import Sequence

from rag.protocols import TokenCounter
from rag.spans.units import reading_order
from rag.text import SEPARATOR, TokenMap, assemble
from rag.types import Bubble, Chunk, Decision, Hit


def is_duplicate(chunk: Chunk, other: Chunk) -> bool:
    """True when `other` already says all that `chunk` says: same content, or a span around it."""
    return chunk.key == other.key or (chunk.doc_id == other.doc_id and other.span.contains(chunk.span))


class Selection:
    """The chosen hits so far. Every candidate gets one decision; actions that start with `skip-` leave it out.

    Once a candidate does not fit, the selection is closed. A later, smaller one might still fit, but then a larger
    budget could end with less text than a smaller one: with closing, a larger budget only ever adds.

    Where counts add up over white space, as between chunks, every chunk is counted once and the counts are added.
    """

    def __init__(self, counter: TokenCounter, budget: int) -> None:
        self.chosen: list[Hit] = []
        self.closed = False
        self._counter = counter
        self._budget = budget
        self._tokens = 0
        self._decisions: dict[str, Decision] = {}
        self._separator = counter.count(SEPARATOR)
        self._counts: dict[str, int] = {}

    def offer(self, hit: Hit, action: str, reason: str, *, gain: float, redundancy: float = 0.0) -> None:
        """Takes the hit, unless the budget or a chosen hit with the same text speaks against it.

        A hit that wholly contains chosen ones takes their place.
        """
        if self.closed:  # not weighed any more, so not tokenised either
            self._decide(hit, "skip-budget", "the budget was reached before it", gain, redundancy, 0)
            return
        same = next((other for other in self.chosen if is_duplicate(hit.chunk, other.chunk)), None)
        if same is not None:
            self.skip(hit, "skip-duplicate", f"its text is in {same.chunk.id}", gain=0.0, redundancy=1.0)
            return
        inside = [other for other in self.chosen if is_duplicate(other.chunk, hit.chunk)]
        together = [other for other in self.chosen if other not in inside] + [hit]
        tokens = self._count(together)
        if tokens > self._budget:
            self.closed = True
            self.skip(hit, "skip-budget", f"needs {tokens} of {self._budget} tokens", gain=gain, redundancy=redundancy)
            return
        for other in inside:
            self.skip(other, "skip-duplicate", f"its text is in {hit.chunk.id}", gain=0.0, redundancy=1.0)
        self._decide(hit, action, reason, gain, redundancy, tokens - self._tokens)
        self.chosen, self._tokens = together, tokens

    def skip(self, hit: Hit, action: str, reason: str, *, gain: float = 0.0, redundancy: float = 0.0) -> None:
        """Leaves the hit out; `tokens` says what it would cost alone."""
        self._decide(hit, action, reason, gain, redundancy, self._alone(hit))

    def pass_over(self, hit: Hit, action: str, reason: str) -> None:
        """Leaves out a hit that was never weighed: it is not tokenised, `tokens` is 0."""
        self._decide(hit, action, reason, 0.0, 0.0, 0)

    def bubble(self, question: str) -> Bubble:
        return Bubble(
            question=question,
            hits=tuple(reading_order(self.chosen)),
            token_count=self._tokens,
            budget=self._budget,
            decisions=tuple(self._decisions.values()),
        )

    def _decide(self, hit: Hit, action: str, reason: str, gain: float, redundancy: float, tokens: int) -> None:
        self._decisions[hit.chunk.id] = Decision(
            chunk_id=hit.chunk.id,
            action=action,
            relevance=hit.score,
            gain=gain,
            redundancy=redundancy,
            tokens=tokens,
            reason=reason,
        )

    def _count(self, hits: Sequence[Hit]) -> int:
        """Exactly the tokens of the assembled text."""
        if self._counter.additive:
            return sum(map(self._alone, hits)) + self._separator * (len(hits) - 1)
        return self._counter.count(assemble(hit.chunk.text for hit in reading_order(hits)))

    def _alone(self, hit: Hit) -> int:
        known = self._counts.get(hit.chunk.id)
        if known is None:
            text = hit.chunk.text
            known = self._counts[hit.chunk.id] = TokenMap(self._counter, text).count(0, len(text))
        return known
