"""Choosing whole sentences: an order by gain, what leans on what, and the target met as nearly as can be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from compressors._band import NEAR, Fill, Lumps, met
from rag.protocols import Corpus, TokenCounter
from rag.spans.filling import lazy_greedy, token_counts
from rag.spans.pieces import context_of, count_kept, joined
from rag.spans.units import Units
from rag.text import SEPARATOR
from rag.types import Bubble, CompressedContext, Decision, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

__all__ = ["Pruning", "header_rows", "openers_lean"]

_LEANS = re.compile(
    r"\s*(?:he|she|it|they|him|his|her|hers|its|their|theirs|this|that|these|those|such|however|therefore|thus|hence|"
    r"moreover|furthermore|also|instead|otherwise|similarly|consequently|nevertheless|then|but|and|so)\b",
    re.IGNORECASE,
)
_PAIRS = 64
"""Units on either side that are tried for an exchange: those of least gain that stay, of most gain that go."""
_LOSS = 0.1
"""What an exchange may cost, as a share of the largest gain."""


def openers_lean(units: Units) -> dict[int, int]:
    """Unit that opens with a reference or a connective -> the unit before it, which it leans on."""
    return {
        number: unit.before
        for number, unit in enumerate(units.units)
        if unit.before >= 0 and _LEANS.match(unit.text) and not units.units[unit.before].heading
    }


def header_rows(units: Units, corpus: Corpus) -> dict[int, int]:
    """Row of a table -> the unit with the table's first row, where the bubble has that."""
    tables: dict[str, list[tuple[Span, Span]]] = {}
    unit_at: dict[tuple[str, int], int] = {}
    for number, unit in enumerate(units.units):
        if unit.doc_id not in tables:
            blocks = corpus.document(unit.doc_id).blocks
            found = [block.span for block in blocks if block.kind == "table"]
            rows = [block.span for block in blocks if block.kind == "row"]
            firsts = [(table, next((row for row in rows if table.contains(row)), None)) for table in found]
            tables[unit.doc_id] = [(table, row) for table, row in firsts if row is not None]
        unit_at.setdefault((unit.doc_id, unit.span.start), number)
    leans: dict[int, int] = {}
    for number, unit in enumerate(units.units):
        for table, row in tables[unit.doc_id]:
            header = unit_at.get((unit.doc_id, row.start))
            if header is not None and header != number and table.contains(unit.span):
                leans[number] = header
    return leans


class Pruning:
    """One compression of the units `numbers`: `values` (n,) are their relevances, `similarity` (n, n) of all pairs,
    `parts` name what a relevance is made of. `needs` maps a unit to the one that it leans on.
    """

    def __init__(
        self,
        bubble: Bubble,
        units: Units,
        numbers: Sequence[int],
        values: Values,
        similarity: Values,
        counter: TokenCounter,
        needs: Mapping[int, int],
        parts: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self._bubble, self._units, self._numbers, self._values = bubble, units, numbers, values
        self._similarity, self._counter, self._needs = similarity, counter, needs
        self._parts = dict(zip(numbers, parts, strict=True)) if parts else {}
        self._tokens = token_counts([unit.text for unit in units.units], counter)
        self._separator = counter.count(SEPARATOR)

    def run(self, name: str, target: int, lam: float) -> CompressedContext:
        """The context with at most `target` tokens, and 97 % of it if whole sentences allow."""
        order = self._ordered(lam)
        lumps = Lumps(
            tokens=dict(enumerate(self._tokens)),
            owners={number: unit.owner for number, unit in enumerate(self._units.units)},
            gains=dict(order),
            separator=self._separator,
            needs=self._needs,
        )
        found = met(
            lambda budget: self._filled(order, budget),
            lambda chosen: count_kept(self._bubble, self._kept(chosen), self._counter),
            lumps,
            target,
        )
        return context_of(self._bubble, self._kept(found.chosen), self._counter, name, self._ledger(order, found))

    def _ordered(self, lam: float) -> list[tuple[int, float]]:
        """(unit, gain) by gain, all units of the pool: the same for every target."""
        import numpy as np

        redundancy = np.zeros(len(self._values))
        order: list[tuple[int, float]] = []

        def gain(at: int) -> float:
            return round(float(self._values[at] - lam * redundancy[at]), 6)

        def take(at: int, value: float) -> bool:
            np.maximum(redundancy, self._similarity[at], out=redundancy)
            order.append((self._numbers[at], value))
            return True

        lazy_greedy(len(self._values), gain, take)
        return order

    def _filled(self, order: Sequence[tuple[int, float]], budget: int) -> set[int]:
        """In that order what fits, each with what it leans on where that fits too; then one exchange for the rest."""
        chosen: set[int] = set()
        used = 0
        for number, _ in order:
            for wanted in (self._with_needs(number) - chosen, {number} - chosen):
                cost = self._cost(wanted, chosen)
                if wanted and used + cost <= budget:
                    chosen |= wanted
                    used += cost
                    break
        near = int((1 - NEAR) * budget)
        if budget - used > near:
            self._exchange(order, chosen, budget - used, near)
        return chosen

    def _with_needs(self, number: int) -> set[int]:
        needed = self._needs.get(number, -1)
        return {number} if needed < 0 else {number, needed}

    def _cost(self, wanted: Iterable[int], chosen: set[int]) -> int:
        """Tokens of units, and of the separator where one is the first of its chunk."""
        owners = {self._units.units[number].owner for number in chosen}
        cost = 0
        for number in wanted:
            cost += self._tokens[number]
            owner = self._units.units[number].owner
            if owner not in owners:
                cost += self._separator if owners else 0
                owners.add(owner)
        return cost

    def _exchange(self, order: Sequence[tuple[int, float]], chosen: set[int], gap: int, near: int) -> None:
        """One chosen unit for one that is left and worth nearly as much, such that at most `near` tokens of the gap
        stay, at the least loss of gain; where none does that, the exchange that leaves the smallest gap.
        """
        bound = {self._needs[number] for number in chosen if number in self._needs}
        stay = [(number, gain) for number, gain in order if number in chosen and number not in bound][-_PAIRS:]
        left = [(number, gain) for number, gain in order if number not in chosen][:_PAIRS]
        most = _LOSS * max((gain for _, gain in order), default=0.0)
        pairs = []
        for old, gain in stay:
            for new, other in left:
                rest = gap - self._cost({new}, chosen - {old}) + self._cost({old}, chosen - {old})
                if 0 <= rest < gap and gain - other <= most:
                    pairs.append((max(rest, near), round(gain - other, 6), old, new))
        if pairs:
            _, _, old, new = min(pairs)
            chosen.remove(old)
            chosen.add(new)

    def _kept(self, chosen: Iterable[int]) -> list[tuple[Span, ...]]:
        spans: list[list[Span]] = [[] for _ in self._bubble.hits]
        for number in chosen:
            unit = self._units.units[number]
            spans[unit.owner].append(unit.span)
        return [joined(one) for one in spans]

    def _ledger(self, order: Sequence[tuple[int, float]], found: Fill) -> list[Decision]:
        """A line for each sentence, in the order of gain; repeated ones last."""
        relevance = dict(zip(self._numbers, map(float, self._values), strict=True))
        chosen = found.chosen
        needed = {self._needs[number]: number for number in chosen if number in self._needs}
        lines = [(number, gain, _reason(number, found, needed)) for number, gain in order]
        lines += [
            (n, 0.0, "says what an earlier sentence says") for n, twin in enumerate(self._units.twins) if twin >= 0
        ]
        return [
            Decision(
                chunk_id=self._bubble.hits[self._units.units[number].owner].chunk.id,
                action="keep" if number in chosen else "drop",
                relevance=round(relevance.get(number, 0.0), 6),
                gain=gain,
                redundancy=0.0,
                tokens=self._tokens[number],
                reason=reason,
                span=self._units.units[number].span,
                parts=self._parts.get(number, {}),
            )
            for number, gain, reason in lines
        ]


def _reason(number: int, found: Fill, needed: Mapping[int, int]) -> str:
    if number in found.refilled:
        return "fills the room that larger gains left"
    if number in found.chosen:
        return "a kept sentence leans on it" if number in needed else "largest gain"
    return "does not fit any more" if found.near else "does not fit any more, nor comes any set of sentences nearer"
