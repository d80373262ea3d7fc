"""What one compressed context still holds: evidence, answers, numbers, and how well the size was met."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.chunks.measures import covered, merged
from eval.compress.references import Part
from eval.select.measures import size
from eval.sets import Place
from rag.protocols import TokenCounter
from rag.text import assemble
from rag.types import Bubble, CompressedContext

__all__ = ["Measured", "says", "survived"]

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of one question; None where there is nothing to measure. `broken` names laws that were broken."""

    scores: Mapping[str, float | None]
    places: tuple[Place, ...]
    broken: tuple[str, ...] = ()


def survived(
    bubble: Bubble,
    context: CompressedContext,
    sentences: Sequence[Part],
    *,
    evidence: Sequence[Place],
    answers: Sequence[str],
    target: int,
    counter: TokenCounter,
    verbatim: bool,
) -> Measured:
    """recall: share of the evidence characters. kept: of those that the bubble has. answer: 1 when one of the answers
    that the bubble says is still said. numbers: share of the numbers of kept sentences that are whole. size: tokens
    over the target.
    """
    source = merged([(bubble.hits[place].chunk.doc_id, span.start, span.end) for place, span in sentences])
    left = merged([(piece.doc_id, one.start, one.end) for piece in context.pieces for one in piece.kept])
    wanted = merged(evidence)
    held, kept = covered(wanted, source), covered(wanted, left)
    before, after = assemble(bubble.texts), assemble(piece.text for piece in context.pieces)
    said = [answer for answer in answers if says(before, answer)]
    scores: dict[str, float | None] = {
        "recall": kept / size(wanted),
        "kept": kept / held if held else None,
        "answer": float(any(says(after, answer) for answer in said)) if said else None,
        "numbers": _numbers(bubble, sentences, left),
        "size": counter.count(after) / target,
        "tokens": float(counter.count(after)),
    }
    return Measured(scores=scores, places=tuple(left), broken=_broken(bubble, context, counter, target, verbatim))


def says(text: str, answer: str) -> bool:
    """Whether the answer stands in the text: case, white space and compatibility forms apart."""
    return bool(answer.strip()) and _plain(answer) in _plain(text)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _numbers(bubble: Bubble, sentences: Sequence[Part], left: Sequence[Place]) -> float | None:
    whole = total = 0
    for place, span in sentences:
        chunk = bubble.hits[place].chunk
        if not covered([(chunk.doc_id, span.start, span.end)], left):
            continue
        text = chunk.text[span.start - chunk.span.start : span.end - chunk.span.start]
        for found in _NUMBER.finditer(text):
            at = (chunk.doc_id, span.start + found.start(), span.start + found.end())
            total += 1
            whole += covered([at], left) == at[2] - at[1]
    return whole / total if total else None


def _broken(
    bubble: Bubble, context: CompressedContext, counter: TokenCounter, target: int, verbatim: bool
) -> tuple[str, ...]:
    tokens = counter.count(assemble(piece.text for piece in context.pieces))
    text_of = {hit.chunk.id: hit.chunk for hit in bubble.hits}
    slices = {
        piece.chunk_id: "".join(
            text_of[piece.chunk_id].text[one.start - piece.span.start : one.end - piece.span.start]
            for one in piece.kept
        )
        for piece in context.pieces
    }
    laws = {
        "over the target": tokens > target,
        "token_count is not what the text has": tokens != context.token_count,
        "longer than the source": tokens > context.source_token_count,
        "a text that its chunk does not have": verbatim
        and any(piece.verbatim and slices[piece.chunk_id] != piece.text for piece in context.pieces),
    }
    return tuple(name for name, broken in laws.items() if broken)
