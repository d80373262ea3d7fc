"""What a bubble of parts is made of: the sentences of the hit chunks, each place once, and the bubble of chosen ones.

Units tile the union of the hits: where chunks lie over each other, a character belongs to one unit of one chunk, so it
is paid for once. A row of a table, a list item and a block of code are units of their own where the parser says so.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rag.protocols import Corpus
from rag.text import SentenceStarts, may_cut
from rag.types import Bubble, Document, Hit, Span

__all__ = ["Unit", "Units", "kept_of", "reading_order", "units_of", "units_of_bubble"]

_WHOLE = ("row", "list", "code")


class Unit(NamedTuple):
    """A part of a chunk. `owner` is the place of its hit in `Units.hits`; `holders` are the places of all hits that
    hold it. `before` is the number of the unit that ends where this one starts, -1 for none. `weight` counts its
    characters once for each hit that has them: what a selection covers of the hits is the sum of its weights.
    """

    span: Span
    text: str
    doc_id: str
    owner: int
    holders: tuple[int, ...]
    weight: int
    before: int = -1
    heading: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """All units, documents by the rank of their best hit and each in reading order.

    `hits` are sorted by rank; `copies` has for each hit whose content is that of a better one the id of that chunk,
    `twins` the units that say what a unit of another document says, with the number of that unit or -1 for none.
    """

    hits: tuple[Hit, ...]
    units: tuple[Unit, ...]
    copies: dict[int, str]
    twins: tuple[int, ...]


def units_of(hits: Sequence[Hit], corpus: Corpus, max_chars: int | None) -> Units:
    """The sentences of the hits, longer ones parted at lines or words; None: chunks, cut where others start or end."""
    ranked = tuple(sorted(hits, key=lambda hit: hit.rank))
    copies = _copies(ranked)
    by_document: dict[str, list[int]] = {}
    for place, hit in enumerate(ranked):
        if place not in copies:
            by_document.setdefault(hit.chunk.doc_id, []).append(place)
    units: list[Unit] = []
    for doc_id, places in by_document.items():
        document = corpus.document(doc_id)
        borders = None if max_chars is None else _borders(document)
        for region in _regions(ranked, places):
            _add_region(units, document, borders, ranked, region, max_chars or len(document.text))
    return Units(hits=ranked, units=tuple(units), copies=copies, twins=_twins(units))


def units_of_bubble(bubble: Bubble, corpus: Corpus, max_chars: int) -> Units:
    """The sentences of what a bubble kept, in its order; `owner` is the place in the bubble.

    A unit that says what an earlier one says has it as its twin, in one document too: chunks may overlap.
    """
    units: list[Unit] = []
    for place, (hit, spans) in enumerate(zip(bubble.hits, bubble.spans, strict=True)):
        document = corpus.document(hit.chunk.doc_id)
        borders = _borders(document)
        for kept in spans:
            at, cuts = kept.start, [*borders.between(kept.start, kept.end), kept.end]
            while at < kept.end:
                end = cuts[bisect_right(cuts, at)]
                span = Span(at, end if end - at <= max_chars else _parted(document.text, at, at + max_chars))
                text = document.text[span.start : span.end]
                last = units[-1] if units else None
                follows = last is not None and (last.doc_id, last.span.end) == (document.id, at)
                before = len(units) - 1 if follows else -1
                heading = bool(text.strip()) and at + len(text) - len(text.lstrip()) in borders.headings
                units.append(Unit(span, text, document.id, place, (place,), len(span), before, heading))
                at = span.end
    first: dict[str, int] = {}
    said = [" ".join(unit.text.split()) for unit in units]
    twins = [first.setdefault(text, number) for number, text in enumerate(said)]
    marked = tuple(
        twin if text and twin != number else -1 for number, (twin, text) in enumerate(zip(twins, said, strict=True))
    )
    return Units(hits=bubble.hits, units=tuple(units), copies={}, twins=marked)


def kept_of(units: Units, chosen: Iterable[int]) -> tuple[tuple[Hit, ...], tuple[tuple[Span, ...], ...]]:
    """`Bubble.hits` and `Bubble.kept` of chosen units: touching units of one chunk are one span."""
    spans: dict[str, list[Span]] = {}
    owners: dict[str, Hit] = {}
    for number in sorted(chosen):
        unit = units.units[number]
        hit = units.hits[unit.owner]
        owners[hit.chunk.id] = hit
        of_chunk = spans.setdefault(hit.chunk.id, [])
        if of_chunk and of_chunk[-1].end == unit.span.start:
            of_chunk[-1] = Span(of_chunk[-1].start, unit.span.end)
        else:
            of_chunk.append(unit.span)
    hits = tuple(reading_order(owners.values()))
    return hits, tuple(tuple(spans[hit.chunk.id]) for hit in hits)


def reading_order(hits: Iterable[Hit]) -> list[Hit]:
    """Documents by the rank of their best hit, chunks of one document by their place in it."""
    hits = list(hits)
    best: dict[str, int] = {}
    for hit in hits:
        best[hit.chunk.doc_id] = min(hit.rank, best.get(hit.chunk.doc_id, hit.rank))
    return sorted(hits, key=lambda hit: (best[hit.chunk.doc_id], hit.chunk.doc_id, hit.chunk.span, hit.rank))


def _copies(ranked: Sequence[Hit]) -> dict[int, str]:
    """What has the header, text and surround of a better hit has its key; comparing them is cheaper than hashing."""
    first: dict[tuple[str, str, str], str] = {}
    copies: dict[int, str] = {}
    for place, hit in enumerate(ranked):
        chunk = hit.chunk
        known = first.setdefault((chunk.header, chunk.text, chunk.surround), chunk.id)
        if known != chunk.id:
            copies[place] = known
    return copies


def _twins(units: Sequence[Unit]) -> tuple[int, ...]:
    """White space apart, the first unit of another document with the same text; -1 for none."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, unit in enumerate(units):
        alike.setdefault(tuple(unit.text.split(None, 3)[:3]), []).append(number)
    twins = [-1] * len(units)
    for start, numbers in alike.items():
        if start and len(numbers) > 1:  # few begin with the same words; only those are compared
            first: dict[str, int] = {}
            for number in numbers:
                known = first.setdefault(" ".join(units[number].text.split()), number)
                if units[known].doc_id != units[number].doc_id:
                    twins[number] = known
    return tuple(twins)


def _regions(hits: Sequence[Hit], places: Sequence[int]) -> Iterator[list[int]]:
    """The hits of one document in groups that touch or overlap, each sorted by start, long ones first."""
    ordered = sorted(places, key=lambda at: (hits[at].chunk.span.start, -hits[at].chunk.span.end, at))
    region: list[int] = []
    end = -1
    for place in ordered:
        span = hits[place].chunk.span
        if region and span.start > end:
            yield region
            region = []
        region.append(place)
        end = max(end, span.end)
    if region:
        yield region


def _borders(document: Document) -> _Borders:
    """Those of a document are kept with it: the corpus gives the same one for the next question."""
    kept = vars(document)
    if "_borders" not in kept:
        kept["_borders"] = _Borders(document)
    borders: _Borders = kept["_borders"]
    return borders


class _Borders:
    """Where the units of one document may start; nothing starts inside of a row, a list item or a block of code."""

    def __init__(self, document: Document) -> None:
        self._starts = SentenceStarts(document)
        self._edges = {edge for block in document.blocks for edge in (block.span.start, block.span.end)}
        self._whole = [block.span for block in document.blocks if block.kind in _WHOLE]
        self.headings = {block.span.start for block in document.blocks if block.kind == "heading"}

    def between(self, begin: int, stop: int) -> list[int]:
        """Sorted, inside of (begin, stop)."""
        cuts = self._starts.between(begin, stop)
        inside: set[int] = set()
        for span in self._whole:
            if span.start < stop and span.end > begin:
                low, high = bisect_right(cuts, span.start), bisect_left(cuts, span.end)
                inside.update(cut for cut in cuts[low:high] if cut not in self._edges)
        return [cut for cut in cuts if cut not in inside]


def _add_region(
    units: list[Unit],
    document: Document,
    borders: _Borders | None,
    hits: Sequence[Hit],
    region: Sequence[int],
    max_chars: int,
) -> None:
    """Units from the start of the region to its end, each within one chunk; a chunk goes on as long as it can."""
    text, doc_id = document.text, document.id
    spans = [(hits[place].chunk.span.start, hits[place].chunk.span.end, place) for place in region]
    begin, stop = spans[0][0], max(end for _, end, _ in spans)
    if borders is None:
        cuts = sorted({edge for start, end, _ in spans for edge in (start, end)} - {begin})
    else:
        cuts = [*borders.between(begin, stop), stop]
    headings = borders.headings if borders is not None else set()
    alone: dict[int, tuple[int, ...]] = {place: (place,) for _, _, place in spans}
    at, owner = begin, region[0]
    before, cut, low, high = -1, 0, 0, 0
    while at < stop:
        first = at
        while first < stop and text[first].isspace():
            first += 1
        while cut + 1 < len(cuts) and cuts[cut] <= first:
            cut += 1
        end = cuts[cut] if cuts[cut] - first <= max_chars else _parted(text, first, first + max_chars)
        # hits are sorted by start: those of [low, high) may hold what starts here, no others do
        while high < len(spans) and spans[high][0] <= at:
            high += 1
        while spans[low][1] <= at:
            low += 1
        until = min(end, spans[low][1])
        if high - low == 1 and (high == len(spans) or spans[high][0] >= until):
            end, owner = until, spans[low][2]
            holders, weight = alone[owner], end - at
        else:
            says = at + len(text[at:end].rstrip())
            end, owner, holders = _held(spans[low:high], at, end, says, owner)
            near = spans[low : bisect_left(spans, (end,), high)]
            weight = sum(max(0, min(hit_end, end) - max(start, at)) for start, hit_end, _ in near)
        heading = first < end and first in headings
        units.append(Unit(Span(at, end), text[at:end], doc_id, owner, holders, weight, before, heading))
        before, at = len(units) - 1, end


def _held(
    spans: Sequence[tuple[int, int, int]], at: int, end: int, says: int, owner: int
) -> tuple[int, int, tuple[int, ...]]:
    """(end, owner, holders) of a unit that starts at `at`; its last owner goes on where it holds all that is said."""
    here = [one for one in spans if one[1] > at]
    able = [one for one in here if one[1] >= says]
    holders = {place: hit_end for _, hit_end, place in able}
    if owner not in holders:
        _, hit_end, owner = max(able or here, key=lambda one: (one[1], -one[2]))
        holders.setdefault(owner, hit_end)
    return min(end, holders[owner]), owner, tuple(sorted(holders))


def _parted(text: str, first: int, limit: int) -> int:
    """The last end of a line, else of a word, else of a visible character, in the latter half before `limit`."""
    half = (first + limit) // 2
    for mark in ("\n", " "):
        found = text.rfind(mark, half, limit)
        if found >= 0:
            return found + 1
    end = limit
    while end > first + 1 and not may_cut(text, end):
        end -= 1
    return end
