"""What a bubble of parts is made of: the sentences of the hit chunks, each place once, and the bubble of chosen ones.

Units tile the union of the hits: where chunks lie over each other, a character belongs to one unit of one chunk, so it
is paid for once. A row of a table, a list item and a block of code are units of their own where the parser says so.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rag.protocols import Corpus
from rag.text import SentenceStarts, may_cut
from rag.types import Document, Hit, Span
from retrievers.selectors._ledger import reading_order

__all__ = ["Unit", "Units", "kept_of", "units_of"]

_WHOLE = ("row", "list", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
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
        borders = None if max_chars is None else _Borders(document)
        for region in _regions(ranked, places):
            _add_region(units, document, borders, ranked, region, max_chars or len(document.text))
    return Units(hits=ranked, units=tuple(units), copies=copies, twins=_twins(units))


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


def _copies(ranked: Sequence[Hit]) -> dict[int, str]:
    first: dict[str, str] = {}
    copies: dict[int, str] = {}
    for place, hit in enumerate(ranked):
        known = first.setdefault(hit.chunk.key, hit.chunk.id)
        if known != hit.chunk.id:
            copies[place] = known
    return copies


def _twins(units: Sequence[Unit]) -> tuple[int, ...]:
    """White space apart, the first unit of another document with the same text; -1 for none."""
    first: dict[str, int] = {}
    twins = []
    for number, unit in enumerate(units):
        said = " ".join(unit.text.split())
        known = first.setdefault(said, number)
        twins.append(known if said and units[known].doc_id != unit.doc_id else -1)
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


def _sentence_starts(document: Document) -> SentenceStarts:
    """Those of a document are kept with it: the corpus gives the same one for the next question."""
    kept = vars(document)
    if "_sentence_starts" not in kept:
        kept["_sentence_starts"] = SentenceStarts(document)
    starts: SentenceStarts = kept["_sentence_starts"]
    return starts


class _Borders:
    """Where the units of one document may start; nothing starts inside of a row, a list item or a block of code."""

    def __init__(self, document: Document) -> None:
        self._starts = _sentence_starts(document)
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
    text = document.text
    begin = hits[region[0]].chunk.span.start
    stop = max(hits[place].chunk.span.end for place in region)
    if borders is None:
        edges = {edge for place in region for edge in (hits[place].chunk.span.start, hits[place].chunk.span.end)}
        cuts = sorted(edges - {begin})
    else:
        cuts = [*borders.between(begin, stop), stop]
    at, owner, first = begin, region[0], len(units)
    while at < stop:
        end, says = _sentence(text, at, cuts, max_chars)
        here = [place for place in region if hits[place].chunk.span.start <= at < hits[place].chunk.span.end]
        holders = [place for place in here if hits[place].chunk.span.end >= says]
        if owner not in holders:
            owner = max(holders or here, key=lambda place: (hits[place].chunk.span.end, -place))
        span = Span(at, min(end, hits[owner].chunk.span.end))
        before = len(units) - 1 if len(units) > first else -1
        units.append(
            Unit(
                span=span,
                text=text[span.start : span.end],
                doc_id=document.id,
                owner=owner,
                holders=tuple(sorted(holders or [owner])),
                weight=sum(_shared(hits[place].chunk.span, span) for place in region),
                before=before,
                heading=borders is not None and _first_visible(text, span) in borders.headings,
            )
        )
        at = span.end


def _sentence(text: str, at: int, cuts: Sequence[int], max_chars: int) -> tuple[int, int]:
    """(end of the unit that starts at `at`, white space after it included; end of what it says)."""
    stop = cuts[-1]
    first = at
    while first < stop and text[first].isspace():
        first += 1
    end = cuts[min(bisect_right(cuts, first), len(cuts) - 1)]
    if end - first > max_chars:
        end = _parted(text, first, first + max_chars)
    return end, at + len(text[at:end].rstrip())


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


def _shared(one: Span, other: Span) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def _first_visible(text: str, span: Span) -> int:
    piece = text[span.start : span.end]
    return span.start + len(piece) - len(piece.lstrip())
