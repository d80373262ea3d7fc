"""A bubble as sentences of words, and the choice of words that keeps a target and cuts no protected span.

A unit is a word with the white space after it, so that units tile what the bubble has and what is left still reads as
words. Where words are written without spaces (Chinese, Japanese) a unit is a character; Thai, Lao, Khmer and Burmese
runs are one unit. A method may join units to larger ones (phrases, whole sentences) before it chooses.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from rag.protocols import Corpus, TokenCounter, TokenLoss
from rag.spans.pieces import count_kept, joined, text_of
from rag.spans.protected import Protector, forced
from rag.text import may_cut
from rag.types import Bubble, Decision, Span

__all__ = [
    "Part",
    "Priorities",
    "by_place",
    "by_unit",
    "fitted",
    "kept_spans",
    "ledger",
    "means",
    "parts_of",
    "picked",
    "whole_sentences",
]

_WORD = re.compile(r"\s*(?:[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\s぀-ヿ㐀-䶿一-鿿豈-﫿]+)\s*")
_ROUNDS = 12
_NEAR = 0.97
"""A choice of that share of the target or more is near enough."""

Priorities = Sequence[Sequence[float]]
"""For each part the priority of each of its units; the highest stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a bubble has of one sentence. `place` is that of its hit; `units` tile `span`, in document coordinates.

    `tokens` are those of each unit, at least 1; `forced` are the units that hold a part of a protected span.
    """

    place: int
    span: Span
    text: str
    units: tuple[Span, ...]
    tokens: tuple[int, ...]
    forced: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Tokens of all units."""
        return sum(self.tokens)

    @property
    def price(self) -> int:
        """Tokens of the forced units, which come with the first unit that stays."""
        return sum(count for count, must in zip(self.tokens, self.forced, strict=True) if must)

    def merged(self, groups: Sequence[Sequence[int]]) -> Part:
        """The same with consecutive units joined: each group becomes one, forced when one of its units is."""
        return Part(
            place=self.place,
            span=self.span,
            text=self.text,
            units=tuple(Span(self.units[group[0]].start, self.units[group[-1]].end) for group in groups),
            tokens=tuple(sum(self.tokens[at] for at in group) for group in groups),
            forced=tuple(any(self.forced[at] for at in group) for group in groups),
        )


def parts_of(bubble: Bubble, corpus: Corpus, counter: TokenCounter) -> list[Part]:
    """The sentences of a bubble in its order, cut where it was cut."""
    made: list[Part] = []
    protectors: dict[str, Protector] = {}
    for place, (hit, spans) in enumerate(zip(bubble.hits, bubble.spans, strict=True)):
        chunk = hit.chunk
        protector = protectors.setdefault(chunk.doc_id, Protector(corpus.document(chunk.doc_id)))
        starts = [chunk.span.start + start for start, _ in counter.offsets(chunk.text)]
        for sentence in (one for span in joined(spans) for one in protector.sentences(span)):
            text = text_of(bubble, place, [sentence])
            units = _units(text, sentence.start)
            tokens = [bisect_left(starts, unit.end) - bisect_left(starts, unit.start) for unit in units]
            made.append(
                Part(
                    place=place,
                    span=sentence,
                    text=text,
                    units=tuple(units),
                    tokens=tuple(max(1, count) for count in tokens),
                    forced=tuple(forced(units, protector.union(sentence))),
                )
            )
    return made


def _units(text: str, shift: int) -> list[Span]:
    """Words that tile the text; one blank unit for a blank text."""
    cuts = [match.start() for match in _WORD.finditer(text)]
    edges = [0, *(at for at in cuts[1:] if may_cut(text, at)), len(text)]
    return [Span(shift + left, shift + right) for left, right in pairwise(edges)]


def whole_sentences(parts: Sequence[Part]) -> list[Part]:
    """Each part as one unit."""
    return [part.merged([range(len(part.units))]) for part in parts]


def means(part: Part, text: str, losses: Sequence[TokenLoss], shift: int) -> list[float]:
    """The mean loss of each unit of a part that stands in `text` from `shift` on; `losses` are those of `text`."""
    return [sum(found) / len(found) for found in by_unit(part, text, losses, shift)]


def by_unit(part: Part, text: str, losses: Sequence[TokenLoss], shift: int) -> list[list[float]]:
    """The losses of the tokens of each unit, at least one.

    A token belongs to the unit of its first visible character. A unit in which no token begins has those of the unit
    before it, or 0.
    """
    starts = [unit.start - part.span.start for unit in part.units]
    values: list[list[float]] = [[] for _ in starts]
    for start, end, nats in losses:
        token = text[start:end]
        at = start - shift + (len(token) - len(token.lstrip()) if token.strip() else 0)
        if 0 <= at < len(part.text):
            values[bisect_right(starts, at) - 1].append(nats)
    made: list[list[float]] = []
    for found in values:
        made.append(found or (made[-1] if made else [0.0]))
    return made


def picked(parts: Sequence[Part], priorities: Priorities, budget: int) -> list[list[bool]]:
    """Which units stay: by priority, those skipped that do not fit, protected ones together with their sentence.

    The protected units of a part are one item with the mean of their priorities; any other unit of the part brings
    them along, and a part of which nothing fits is left out whole.
    """
    items = []
    for number, (part, values) in enumerate(zip(parts, priorities, strict=True)):
        price = part.price
        if price:
            rows = zip(values, part.tokens, part.forced, strict=True)
            mean = sum(value * count for value, count, must in rows if must) / price
            items.append((-round(mean, 6), number, -1))
        items.extend((-round(values[at], 6), number, at) for at, must in enumerate(part.forced) if not must)
    chosen = [[False] * len(part.units) for part in parts]
    alive: set[int] = set()
    used = 0
    for _, number, at in sorted(items):
        part = parts[number]
        cost = (0 if at < 0 else part.tokens[at]) + (0 if number in alive else part.price)
        if (at < 0 and number in alive) or used + cost > budget:
            continue
        used += cost
        if number not in alive:
            alive.add(number)
            chosen[number] = list(part.forced)
        if at >= 0:
            chosen[number][at] = True
    return chosen


def kept_spans(parts: Sequence[Part], chosen: Sequence[Sequence[bool]], hits: int) -> list[tuple[Span, ...]]:
    """The units that stay as spans of each hit; a part that has nothing visible left has nothing."""
    spans: list[list[Span]] = [[] for _ in range(hits)]
    for part, flags in zip(parts, chosen, strict=True):
        left = [unit for unit, stays in zip(part.units, flags, strict=True) if stays]
        if any(part.text[one.start - part.span.start : one.end - part.span.start].strip() for one in left):
            spans[part.place].extend(left)
    return [joined(found) for found in spans]


def fitted(
    bubble: Bubble, parts: Sequence[Part], priorities: Priorities, target: int, counter: TokenCounter
) -> list[list[bool]]:
    """`picked`, with a budget such that the assembled context has at most `target` tokens, and 97 % of it if it can."""
    budget, low, high = target, 0, 2 * target + 64
    best, most = [[False] * len(part.units) for part in parts], 0
    for _ in range(_ROUNDS):
        chosen = picked(parts, priorities, budget)
        count = count_kept(bubble, kept_spans(parts, chosen, len(bubble.hits)), counter)
        if count <= target:
            low = max(low, budget)
            if count > most:
                best, most = chosen, count
            if count >= _NEAR * target or all(map(all, chosen)):
                break
        else:
            high = min(high, budget)
        budget += target - count
        if not low < budget < high:
            budget = (low + high) // 2
        if not low < budget < high:
            break
    return best


def ledger(
    bubble: Bubble,
    parts: Sequence[Part],
    chosen: Sequence[Sequence[bool]],
    scores: Sequence[float],
    reasons: Sequence[str] | str,
) -> Iterator[Decision]:
    """A line for each part: `keep`, `part` (some words of it) or `drop`; `tokens` are those that stay, or would have.

    `reasons` says what the scores are, for all parts or for each.
    """
    for number, (part, flags, score) in enumerate(zip(parts, chosen, scores, strict=True)):
        left = sum(count for count, stays in zip(part.tokens, flags, strict=True) if stays)
        reason = reasons if isinstance(reasons, str) else reasons[number]
        some = f"; {left} of {part.size} tokens, protected spans whole" if 0 < left < part.size else ""
        yield Decision(
            chunk_id=bubble.hits[part.place].chunk.id,
            action="drop" if not left else "keep" if left == part.size else "part",
            relevance=round(score, 6),
            gain=0.0,
            redundancy=0.0,
            tokens=left or part.size,
            reason=reason + some,
            span=part.span,
        )


def by_place(parts: Sequence[Part]) -> list[tuple[int, list[Part]]]:
    """(place of the hit, its parts), in order."""
    return [(place, list(found)) for place, found in groupby(parts, key=lambda part: part.place)]
