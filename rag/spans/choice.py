"""The span objective of the bubble: relevance of sentences at several sizes, less what was said before."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rag.spans.features import NAMES, Pool
from rag.spans.filling import Filling, Gain, Take, lazy_greedy
from rag.spans.units import Units
from rag.types import Bubble, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

__all__ = ["SpanChoice", "boosted", "prior_of"]

_REFERS = re.compile(
    r"\s*(?:he|she|it|they|this|these|those|that|such|his|her|its|their|however|therefore|thus|also|but|then|here)\b",
    re.IGNORECASE,
)
_PARTS = (*NAMES, "nearby")
Greedy = Callable[[int, Gain, Take], int]


def boosted(values: Values, units: Units, pool: Pool, kappa: float) -> Values:
    """v + kappa * max(v of the unit before, v of the unit after), of those in the pool."""
    import numpy as np

    place = {number: at for at, number in enumerate(pool.numbers)}
    best = np.zeros_like(values)
    for at, number in enumerate(pool.numbers):
        before = place.get(units.units[number].before)
        if before is not None:
            best[at] = max(best[at], values[before])
            best[before] = max(best[before], values[at])
    return values + kappa * best


def prior_of(priors: Mapping[str, float], document: Document) -> float:
    """The sum of the priors that hold for a document: `source=PATTERN` or `meta.NAME=VALUE`."""
    total = 0.0
    for key, value in priors.items():
        name, _, wanted = key.partition("=")
        found = document.source if name == "source" else document.meta.get(name.removeprefix("meta."))
        if found is not None and fnmatchcase(str(found), wanted):
            total += value
    return total


class SpanChoice:
    """One selection: `values` are the relevances of the pool, and gains fall as more is chosen.

    gain = value - lam * (largest similarity with a chosen unit) + coverage * (IDF share of the question's words that
    no chosen unit has).
    """

    def __init__(
        self,
        units: Units,
        pool: Pool,
        values: Values,
        filling: Filling,
        *,
        lam: float,
        coverage: float = 0.0,
        closure: bool = False,
        overlap: float = 0.0,
        source_cap: int = 0,
    ) -> None:
        import numpy as np

        self.calls = 0
        self._units, self._pool, self._filling = units, pool, filling
        self._values: list[float] = values.tolist()
        self._lam, self._coverage, self._closure = lam, coverage, closure
        self._overlap, self._source_cap = overlap, source_cap
        self._parts = np.column_stack((pool.parts, pool.nearby)).tolist()
        self._redundancy = np.zeros(len(values))
        self._open_words = pool.share.copy()
        self._spent: dict[str, int] = {}
        self._done: set[int] = set()
        self._gate = _WordGate(pool.bags) if overlap else None
        self._place = {number: at for at, number in enumerate(pool.numbers)}

    def gain(self, at: int) -> float:
        """Of the unit at this place of the pool, rounded so that the last bits decide nothing."""
        found: float = self._values[at] - self._lam * self._redundancy.item(at)
        if self._coverage:
            found += self._coverage * float(self._pool.said[at] @ self._open_words)
        return round(found, 6)

    def run(self, question: str, greedy: Greedy = lazy_greedy) -> Bubble:
        self.calls = greedy(len(self._values), self.gain, self._offer)
        for at in range(len(self._values)):
            if at not in self._done:
                self._skip(at, "skip-budget", "the budget was reached before it", self.gain(at))
        for number, twin in enumerate(self._units.twins):
            if twin >= 0:
                other = self._units.units[twin]
                where = self._units.hits[other.owner].chunk.id
                self._filling.note(number, "skip-duplicate", f"its text is in {where}", redundancy=1.0)
        self._filling.trim()
        return self._filling.bubble(question)

    def _offer(self, at: int, gain: float) -> bool | None:
        if at in self._done:
            return False
        if self._filling.closed:
            return None
        unit = self._units.units[self._pool.numbers[at]]
        if self._gate is not None and (shared := self._gate.shared(at)) >= self._overlap:
            return self._skip(at, "skip-redundant", f"{shared:.2f} of its words are chosen already", gain)
        cost = self._spent.get(unit.doc_id, 0) + self._filling.tokens[self._pool.numbers[at]]
        if self._source_cap and cost > self._source_cap:
            return self._skip(at, "skip-source", f"its document would have {cost} of {self._source_cap} tokens", gain)
        if not self._filling.fits(self._pool.numbers[at]):
            return self._skip(at, "skip-budget", "does not fit into the budget", gain)
        self._take(at, gain, "take", "largest gain")
        if self._closure:
            self._close(at)
        return True

    def _close(self, at: int) -> None:
        """What the unit at this place leans on: the sentence before it, and the heading over it."""
        unit = self._units.units[self._pool.numbers[at]]
        wanted = [(unit.before, "expand", "what follows opens with a reference")] if _REFERS.match(unit.text) else []
        above = unit.before
        while above >= 0 and not self._units.units[above].heading:
            above = self._units.units[above].before
        wanted.append((above, "expand", "the heading of what is chosen"))
        for number, action, reason in wanted:
            other = self._place.get(number)
            if other is None or other in self._done:
                continue
            cost = self._spent.get(unit.doc_id, 0) + self._filling.tokens[number]
            if not (self._source_cap and cost > self._source_cap) and self._filling.fits(number):
                self._take(other, self.gain(other), action, reason)

    def _take(self, at: int, gain: float, action: str, reason: str) -> None:
        import numpy as np

        number = self._pool.numbers[at]
        doc_id = self._units.units[number].doc_id
        self._note(at, action, reason, gain)
        self._filling.take(number)
        self._spent[doc_id] = self._spent.get(doc_id, 0) + self._filling.tokens[number]
        self._redundancy = np.maximum(self._redundancy, self._pool.similarity[at])
        if self._coverage:
            self._open_words = np.where(self._pool.said[at], 0.0, self._open_words)
        if self._gate is not None:
            self._gate.add(at)

    def _skip(self, at: int, action: str, reason: str, gain: float) -> bool:
        self._note(at, action, reason, gain)
        return False

    def _note(self, at: int, action: str, reason: str, gain: float) -> None:
        self._done.add(at)
        self._filling.note(
            self._pool.numbers[at],
            action,
            reason,
            relevance=round(self._values[at], 6),
            gain=gain,
            redundancy=round(self._redundancy.item(at), 6),
            parts=dict(zip(_PARTS, self._parts[at], strict=True)),
        )


class _WordGate:
    """How much of a unit is said already: the IDF share of its words that chosen units have; IDF over the pool."""

    def __init__(self, bags: Sequence[Sequence[str]]) -> None:
        from math import log

        self._words = [frozenset(bag) for bag in bags]
        found: dict[str, int] = {}
        for words in self._words:
            for word in words:
                found[word] = found.get(word, 0) + 1
        self._idf = {word: log(1 + (len(bags) - count + 0.5) / (count + 0.5)) for word, count in found.items()}
        self._chosen: set[str] = set()

    def shared(self, at: int) -> float:
        total = sum(self._idf[word] for word in sorted(self._words[at]))
        said = sum(self._idf[word] for word in sorted(self._words[at] & self._chosen))
        return said / total if total else 0.0

    def add(self, at: int) -> None:
        self._chosen |= self._words[at]
