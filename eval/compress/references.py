"""What a compressor should be held against: cutting off, fewer chunks, chance, and the evidence itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from eval.sets import Place
from rag.protocols import Compressor, Corpus, TokenCounter
from rag.spans.features import UNIT_CHARS
from rag.spans.pieces import context_of, count_kept, joined
from rag.spans.units import units_of_bubble
from rag.types import Bubble, CompressedContext, Span

__all__ = ["REFERENCES", "Part", "parts_of", "reference"]

REFERENCES = ("(truncate)", "(top-k)", "(random)", "(oracle)")
Part = tuple[int, Span]
"""(place of the hit in the bubble, a sentence of what the bubble kept of it)."""


def reference(name: str, counter: TokenCounter, target: int, evidence: Sequence[Place]) -> Compressor:
    """One of REFERENCES for the question with this `evidence`, which only the oracle reads."""
    orders: dict[str, Callable[[Bubble, list[Part]], list[Part]]] = {
        "(truncate)": lambda bubble, parts: parts,
        "(top-k)": _by_rank,
        "(random)": _shuffled,
        "(oracle)": lambda bubble, parts: _gold_first(bubble, parts, evidence),
    }
    return _Ordered(name, counter, target, orders[name])


def parts_of(bubble: Bubble, corpus: Corpus) -> list[Part]:
    """The sentences of what a bubble kept, in its order, rows, list items and code whole.

    One that is kept in part is cut. One over 600 characters counts as parts of that length, cut at lines or words: what
    a splitter takes for a sentence of thousands of characters is a list without full stops.
    """
    return [(unit.owner, unit.span) for unit in units_of_bubble(bubble, corpus, UNIT_CHARS).units]


class _Ordered(Compressor):
    """Sentences in some order as long as they fit; the first that does not is cut at a character."""

    def __init__(
        self, name: str, counter: TokenCounter, target: int, order: Callable[[Bubble, list[Part]], list[Part]]
    ) -> None:
        self._name, self._counter, self._target, self._order = name, counter, target, order

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        parts = self._order(bubble, parts_of(bubble, corpus))
        low, high = 0, len(parts)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(bubble, parts[:middle]) else (low, middle - 1)
        chosen = parts[:low]
        if low < len(parts):
            place, span = parts[low]
            first, last = span.start, span.end - 1
            while first < last:
                middle = (first + last + 1) // 2
                tried = [*chosen, (place, Span(span.start, middle))]
                first, last = (middle, last) if self._fits(bubble, tried) else (first, middle - 1)
            chosen.append((place, Span(span.start, first)))
        return context_of(bubble, _kept(bubble, chosen), self._counter, self._name)

    def _fits(self, bubble: Bubble, parts: Iterable[Part]) -> bool:
        return count_kept(bubble, _kept(bubble, parts), self._counter) <= self._target


def _kept(bubble: Bubble, parts: Iterable[Part]) -> list[tuple[Span, ...]]:
    spans: list[list[Span]] = [[] for _ in bubble.hits]
    for place, span in parts:
        spans[place].append(span)
    return [joined(one) for one in spans]


def _by_rank(bubble: Bubble, parts: list[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: (bubble.hits[part[0]].rank, part[1]))


def _shuffled(bubble: Bubble, parts: list[Part]) -> list[Part]:
    def digest(part: Part) -> bytes:
        named = f"{bubble.question}\0{bubble.hits[part[0]].chunk.id}\0{part[1].start}"
        return hashlib.blake2b(named.encode(), digest_size=8).digest()

    return sorted(parts, key=digest)


def _gold_first(bubble: Bubble, parts: list[Part], evidence: Sequence[Place]) -> list[Part]:
    """Parts by the share of them that is evidence."""

    def gold(part: Part) -> float:
        place, span = part
        doc_id = bubble.hits[place].chunk.doc_id
        inside = sum(
            max(0, min(span.end, end) - max(span.start, start)) for name, start, end in evidence if name == doc_id
        )
        return -inside / len(span)

    return sorted(parts, key=gold)
