"""From kept spans to the context that a generator reads, and the size that is aimed at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rag.errors import ConfigError
from rag.protocols import TokenCounter
from rag.text import assemble
from rag.types import Bubble, CompressedContext, Decision, Piece, Span

__all__ = ["aim", "check_size", "context_of", "count_kept", "joined", "scores_of", "text_of", "unchanged"]

Kept = Sequence[Sequence[Span]]
"""For each hit of a bubble the spans that stay, sorted and apart, in document coordinates; none for a dropped chunk."""


def check_size(name: str, target: int | None, rate: float) -> None:
    """ConfigError unless the target is None or at least 1, and 0 < rate <= 1."""
    if target is not None and target < 1:
        raise ConfigError(f"{name}: target must be >= 1 token, or None for the rate, not {target}")
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"{name}: rate must be above 0 and at most 1 (share of the tokens that stay), not {rate}")


def aim(tokens: int, target: int | None, rate: float) -> int:
    """The most tokens that may stay of `tokens`: the target, or that share of them, at least 1."""
    return target if target is not None else max(1, int(tokens * rate))


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted, empty ones left out, touching and overlapping ones as one."""
    made: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, one.end)):
        if made and span.start <= made[-1].end:
            made[-1] = Span(made[-1].start, max(made[-1].end, span.end))
        elif span.end > span.start:
            made.append(span)
    return tuple(made)


def text_of(bubble: Bubble, place: int, spans: Iterable[Span]) -> str:
    """These spans of the hit at this place of the bubble, one after the other."""
    chunk = bubble.hits[place].chunk
    return "".join(chunk.text[span.start - chunk.span.start : span.end - chunk.span.start] for span in spans)


def count_kept(bubble: Bubble, kept: Kept, counter: TokenCounter) -> int:
    """Tokens of the context of these parts, as `context_of` counts them."""
    return counter.count(assemble(text_of(bubble, place, spans) for place, spans in enumerate(kept) if spans))


def context_of(
    bubble: Bubble, kept: Kept, counter: TokenCounter, name: str, decisions: Iterable[Decision] = ()
) -> CompressedContext:
    """The context of these parts of a bubble; spans must be sorted, apart, and inside of what the bubble has."""
    pieces = []
    scores = scores_of(bubble)
    for place, (hit, spans) in enumerate(zip(bubble.hits, kept, strict=True)):
        if spans:
            assert all(left.end <= right.start for left, right in pairwise(spans))  # noqa: S101 - callers use `joined`
            pieces.append(
                Piece(
                    chunk_id=hit.chunk.id,
                    doc_id=hit.chunk.doc_id,
                    span=hit.chunk.span,
                    text=text_of(bubble, place, spans),
                    kept=tuple(spans),
                    score=scores[place],
                )
            )
    whole, left = assemble(bubble.texts), assemble(piece.text for piece in pieces)
    tokens = counter.count(whole)
    return CompressedContext(
        question=bubble.question,
        pieces=tuple(pieces),
        token_count=tokens if left == whole else counter.count(left),
        source_token_count=tokens,
        compressor=name,
        decisions=tuple(decisions),
    )


def scores_of(bubble: Bubble) -> list[float]:
    """One for each hit, on one scale: the best relevance of what was taken of it, as the ledger has it; those of the
    retriever where the ledger does not tell of all hits."""
    taken: dict[str, float] = {}
    for one in bubble.decisions:
        if one.action == "take":
            taken[one.chunk_id] = max(one.relevance, taken.get(one.chunk_id, one.relevance))
    told = all(hit.chunk.id in taken for hit in bubble.hits)
    return [taken[hit.chunk.id] if told else hit.score for hit in bubble.hits]


def unchanged(bubble: Bubble, counter: TokenCounter, name: str) -> CompressedContext:
    """The context of all that the bubble has."""
    return context_of(bubble, bubble.spans, counter, name)
