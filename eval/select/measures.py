"""What one bubble holds of the evidence of its question."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from eval.chunks.measures import covered, merged
from eval.sets import Place
from rag.protocols import TokenCounter
from rag.text import assemble
from rag.types import Bubble

__all__ = ["Measured", "held", "places_of", "size"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of one question. `broken` names laws that the bubble broke: none, if the selector is sound."""

    scores: Mapping[str, float]
    places: tuple[Place, ...]
    broken: tuple[str, ...] = ()


def held(
    bubble: Bubble,
    evidence: Sequence[Place],
    budget: int,
    counter: TokenCounter,
    texts: Mapping[str, str],
    poisoned: Collection[str] = (),
) -> Measured:
    """Recall and precision of evidence characters (none counts twice), and the whole of it or not.

    all: every piece of evidence whole, but for white space. any: at least one of them. `texts`: document id -> text.
    `poisoned`: ids of documents that argue for a wrong answer; counted are their chunks, and their share of the
    characters.
    """
    places = places_of(bubble)
    wanted, chosen = merged(evidence), merged(places)
    hit, total, taken = covered(wanted, chosen), size(wanted), size(chosen)
    whole = [_whole(place, chosen, texts) for place in evidence]
    bad = [place for place in chosen if place[0] in poisoned]
    tokens = counter.count(assemble(bubble.texts))
    scores = {
        "recall": hit / total,
        "precision": hit / taken if taken else 0.0,
        "all": float(all(whole)),
        "any": float(any(whole)),
        "tokens": float(tokens),
        "poisoned": float(sum(one.chunk.doc_id in poisoned for one in bubble.hits)),
        "poisoned_share": size(bad) / taken if taken else 0.0,
    }
    return Measured(scores=scores, places=tuple(chosen), broken=_broken(bubble, budget, tokens, texts))


def places_of(bubble: Bubble) -> list[Place]:
    """What of which document was chosen."""
    return [
        (hit.chunk.doc_id, span.start, span.end)
        for hit, spans in zip(bubble.hits, bubble.spans, strict=True)
        for span in spans
    ]


def size(places: Sequence[Place]) -> int:
    return sum(end - start for _, start, end in places)


def _whole(place: Place, chosen: Sequence[Place], texts: Mapping[str, str]) -> bool:
    """True when nothing visible of `place` is left out; `chosen` is sorted and does not overlap."""
    name, start, end = place
    at, missing = start, []
    for document, low, high in chosen:
        if document == name and low < end and high > at:
            missing.append((at, low))
            at = high
    missing.append((at, end))
    return not any(texts[name][low:high].strip() for low, high in missing)


def _broken(bubble: Bubble, budget: int, tokens: int, texts: Mapping[str, str]) -> tuple[str, ...]:
    laws = {
        "over the budget": tokens > budget,
        "token_count is not what the text has": tokens != bubble.token_count,
        "a text that its document does not have": any(
            text != "".join(texts.get(hit.chunk.doc_id, "")[span.start : span.end] for span in spans)
            for hit, spans, text in zip(bubble.hits, bubble.spans, bubble.texts, strict=True)
        ),
    }
    return tuple(name for name, broken in laws.items() if broken)
