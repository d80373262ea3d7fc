"""Taking units one after the other under a budget, and choosing the next one without scoring all others again.

Why a larger budget never covers less: two budgets take the same units up to the first one, `u`, that fits into the
larger only. From there on the smaller may take units whose weights sum to that of `u` at most (`Filling.room`), and
the larger has `u`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from math import inf

from rag.protocols import TokenCounter
from rag.spans.units import Units, kept_of
from rag.text import SEPARATOR, WHITE, TokenFinder, TokenMap, TokenStarts, assemble
from rag.types import Bubble, Decision

__all__ = ["Filling", "Gain", "Take", "lazy_greedy", "token_counts"]

_TRIES = 8
"""Units that do not fit before nothing more is tried."""

Gain = Callable[[int], float]
Take = Callable[[int, float], bool | None]


def lazy_greedy(size: int, gain: Gain, take: Take) -> int:
    """Takes the candidate with the largest gain, ties by number, until `take` says None; returns calls of `gain`.

    `take(candidate, gain)`: True took it, False left it for good, None ends. Gains must never grow (Minoux 1978): an
    old gain is then a bound, so that few are computed again.
    """
    calls, step = size, 0
    heap = [(-gain(at), at, 0) for at in range(size)]
    heapify(heap)
    while heap:
        known, at, when = heappop(heap)
        if when < step:
            heappush(heap, (-gain(at), at, step))
            calls += 1
            continue
        taken = take(at, -known)
        if taken is None:
            break
        step += bool(taken)
    return calls


def token_counts(texts: Sequence[str], counter: TokenCounter) -> list[int]:
    """Tokens of each text alone; where counts add up over white space the texts are tokenised together, once."""
    if not counter.additive:
        return [counter.count(text) for text in texts]
    joined = "\n".join(texts)
    tokens = counter.tokens(joined) if isinstance(counter, TokenFinder) else TokenStarts(counter, joined)
    starts = list(accumulate((len(text) + 1 for text in texts), initial=0))
    edges = [*starts[:-1], len(joined)]
    return [after - before for before, after in pairwise(map(tokens.before, edges))]


class Filling:
    """Chosen units under a budget, and the ledger.

    Where counts add up over white space, those of the units are added and no text is assembled before the end. With
    other counters the text is counted near the edge of the budget. What comes out is counted as a whole in any case.
    """

    def __init__(self, units: Units, numbers: Sequence[int], counter: TokenCounter, budget: int) -> None:
        self.chosen: list[int] = []
        self.closed = False
        self.room = inf
        self.tokens = dict(zip(numbers, token_counts([units.units[n].text for n in numbers], counter), strict=True))
        self._units, self._counter, self._budget = units, counter, budget
        self._sum, self._tries = 0, 0
        self._separator = counter.count(SEPARATOR)
        self._counted: tuple[list[int], int] = ([], 0)
        self._ledger: dict[int, Decision] = {}
        self._ids = [hit.chunk.id for hit in units.hits]
        self._of_owner: dict[int, list[int]] = {}
        self._adds = counter.additive

    def fits(self, number: int) -> bool:
        """Whether the unit may be taken; when it does not fit, what may be taken after it is limited."""
        weight = self._units.units[number].weight
        if self.closed or weight > self.room:
            return False
        if self._fits(number):
            return True
        self.room = min(self.room, weight)
        self._tries += 1
        self.closed = self._tries >= _TRIES
        return False

    def take(self, number: int) -> None:
        unit = self._units.units[number]
        self._adds = self._adds and self._adds_up(number)
        insort(self._of_owner.setdefault(unit.owner, []), number)
        self.chosen.append(number)
        self._sum += self.tokens[number]
        self.room -= unit.weight

    def note(
        self,
        number: int,
        action: str,
        reason: str,
        *,
        relevance: float = 0.0,
        gain: float = 0.0,
        redundancy: float = 0.0,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        """The decision about a unit."""
        unit = self._units.units[number]
        self._ledger[number] = Decision(
            chunk_id=self._ids[unit.owner],
            action=action,
            relevance=relevance,
            gain=gain,
            redundancy=redundancy,
            tokens=self.tokens[number],
            reason=reason,
            span=unit.span,
            parts=parts or {},
        )

    def bubble(self, question: str) -> Bubble:
        """The chosen units; hits without any unit on the ledger get a line of their own."""
        hits, kept = kept_of(self._units, self.chosen)
        return Bubble(
            question=question,
            hits=hits,
            token_count=self._count(self.chosen),
            budget=self._budget,
            decisions=(*self._ledger.values(), *self._others()),
            kept=kept,
        )

    def trim(self) -> None:
        """Gives back the last units while the exact count is over the budget: a counter whose seams cost much."""
        while self.chosen and (tokens := self._count(self.chosen)) > self._budget:
            number = self.chosen.pop()
            reason = f"with it the text needs {tokens} of {self._budget} tokens"
            self._ledger[number] = replace(self._ledger[number], action="skip-budget", reason=reason)

    def _others(self) -> list[Decision]:
        """Nothing of these hits was weighed, so they are not tokenised."""
        noted = {decision.chunk_id for decision in self._ledger.values()}
        owners = {unit.owner for unit in self._units.units}
        lines = []
        for place, chunk_id in enumerate(self._ids):
            if chunk_id in noted:
                continue
            action, reason = "skip-duplicate", "its text is in chunks that lie over it"
            if place in self._units.copies:
                reason = f"its text is in {self._units.copies[place]}"
            elif place in owners:
                action, reason = "skip-rank", "none of its sentences is in the pool"
            lines.append(
                Decision(
                    chunk_id=chunk_id,
                    action=action,
                    relevance=self._units.hits[place].score,
                    gain=0.0,
                    redundancy=float(action == "skip-duplicate"),
                    tokens=0,
                    reason=reason,
                )
            )
        return lines

    def _fits(self, number: int) -> bool:
        """By the counts of the units where those decide, else by the text itself; seams move a count by one each."""
        owners = len(self._of_owner) + (self._units.units[number].owner not in self._of_owner)
        tokens = self._sum + self.tokens[number] + self._separator * (owners - 1)
        margin = len(self.chosen) + 1
        if abs(tokens - self._budget) > margin or (self._adds and self._adds_up(number)):
            return tokens <= self._budget
        return self._count([*self.chosen, number]) <= self._budget

    def _adds_up(self, number: int) -> bool:
        """True when white space parts the unit from the chosen ones before and after it in its chunk."""
        units = self._units.units
        beside = self._of_owner.get(units[number].owner, [])
        at = bisect_left(beside, number)
        pairs = pairwise((*beside[max(0, at - 1) : at], number, *beside[at : at + 1]))
        return all(units[a].text[-1] in WHITE or units[b].text[0] in WHITE for a, b in pairs)

    def _count(self, numbers: Sequence[int]) -> int:
        if self._counted[0] == numbers:
            return self._counted[1]
        hits, kept = kept_of(self._units, numbers)
        bubble = Bubble(question="", hits=hits, token_count=0, budget=0, decisions=(), kept=kept)
        text = assemble(bubble.texts)
        self._counted = (list(numbers), TokenMap(self._counter, text).count(0, len(text)))
        return self._counted[1]
