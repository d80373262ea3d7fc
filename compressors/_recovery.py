"""From an answer over pruned text back to the source, and the order of chunks by rank (both of arXiv 2310.06839)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.types import CompressedContext, Piece, Span

__all__ = ["Recovered", "by_rank", "recovered"]

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A run of words of an answer, and the stretch of a document that it was pruned from.

    `answer` is the run's range in the answer. `source` reaches from its first kept character to its last, with what
    was left out between, in coordinates of the document `doc_id`.
    """

    answer: Span
    chunk_id: str
    doc_id: str
    source: Span


def by_rank(context: CompressedContext) -> tuple[str, ...]:
    """Ids of the chunks of the pieces, best first, by the ranks in the ledger; chunks without one last, in order."""
    ranks = {line.chunk_id: line.parts["rank"] for line in context.decisions if "rank" in line.parts}
    ids = [piece.chunk_id for piece in context.pieces]
    return tuple(sorted(ids, key=lambda chunk_id: ranks.get(chunk_id, float("inf"))))


def recovered(context: CompressedContext, answer: str, *, max_gap: int = 200) -> list[Recovered]:
    """Where the words of an answer come from: from left to right, the longest runs that stand in one piece.

    A run of several words counts when, in the source, at most `max_gap` characters lie between its kept ones; of
    several places the one with the shortest stretch is taken, ties in reading order. Case and white space at line ends
    may differ. The paper searches the original for the shortest matching subsequence with a gap of 10 tokens; here the
    kept spans say where each character was.
    """
    words = [Span(*match.span()) for match in _WORD.finditer(answer)]
    made: list[Recovered] = []
    at = 0
    while at < len(words):
        best: Recovered | None = None
        last = at
        for end in range(at + 1, len(words) + 1):
            span = Span(words[at].start, words[end - 1].end)
            found = _shortest(context.pieces, answer, span, max_gap)
            if found is None:
                break
            best, last = found, end
        if best is not None:
            made.append(best)
        at = max(last, at + 1)
    return made


def _shortest(pieces: Sequence[Piece], answer: str, span: Span, max_gap: int) -> Recovered | None:
    words = answer[span.start : span.end].split()
    pattern = re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)", re.IGNORECASE)
    best: Recovered | None = None
    for piece in pieces:
        for source in _places(piece, pattern, max_gap) if piece.verbatim else ():
            if best is None or len(source) < len(best.source):
                best = Recovered(answer=span, chunk_id=piece.chunk_id, doc_id=piece.doc_id, source=source)
    return best


def _places(piece: Piece, pattern: re.Pattern[str], max_gap: int) -> Iterator[Span]:
    for match in pattern.finditer(piece.text):
        spans = list(_slices(piece.kept, match.start(), match.end()))
        source = Span(spans[0].start, spans[-1].end)
        if len(source) - sum(map(len, spans)) <= max_gap:
            yield source


def _slices(kept: Sequence[Span], start: int, end: int) -> Iterator[Span]:
    """The parts of the document that are characters [start, end) of the joined kept spans."""
    at = 0
    for span in kept:
        low, high = max(start, at), min(end, at + len(span))
        if low < high:
            yield Span(span.start + low - at, span.start + high - at)
        at += len(span)
