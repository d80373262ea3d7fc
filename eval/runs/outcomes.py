"""What a pipeline made of one question, without any judgement: what is kept, and what workers hand back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.select.measures import places_of

if TYPE_CHECKING:
    from eval.runs.likelihood import Told
    from rag.answer import Answer
    from rag.protocols import TokenCounter
    from rag.types import Hit

__all__ = ["BUDGETS", "Outcome", "failed", "outcome_of"]

BUDGETS = (200, 400, 800, 1600)
"""Tokens of what reads the context, for the curve of recall over what is read of the ranking."""

Outcome = Mapping[str, Any]
"""JSON: answer, abstained, error, hits [name, start, end, score], prefixes (one a budget: whole hits, end of the part
of the next one), selected [name, start, end], context [name, start, end, kept], citations [name, start, end], tokens,
seconds (stage -> wall time), generation (of GenerationStats), encoder (counts of a Meter, or None), gold (reference ->
nats a token, or None)."""

_STATS = (
    "prompt_tokens", "new_tokens", "reused_tokens", "repaired_tokens", "computed_tokens", "bytes_loaded",
    "ttft_seconds",
)  # fmt: skip


def outcome_of(
    answer: Answer,
    name_of: Callable[[str], str],
    counter: TokenCounter,
    *,
    encoder: Mapping[str, int] | None = None,
    gold: Told | None = None,
) -> dict[str, Any]:
    """`name_of`: document id -> its name in the data set."""
    return {
        "answer": answer.text,
        "abstained": not answer.citations and not answer.sentences,
        "error": None,
        "hits": [
            [name_of(hit.chunk.doc_id), hit.chunk.span.start, hit.chunk.span.end, round(float(hit.score), 6)]
            for hit in answer.candidates
        ],
        "prefixes": prefixes(answer.candidates, counter),
        "selected": [[name_of(doc_id), start, end] for doc_id, start, end in places_of(answer.bubble)],
        "context": [
            [name_of(one.doc_id), one.span.start, one.span.end, [[kept.start, kept.end] for kept in one.kept]]
            for one in answer.context.pieces
        ],
        "citations": [[name_of(one.doc_id), one.span.start, one.span.end] for one in answer.citations],
        "tokens": answer.context.token_count,
        "seconds": {stage.stage: stage.seconds for stage in answer.trace},
        "generation": {name: getattr(answer.stats, name) for name in _STATS},
        "encoder": encoder,
        "gold": gold,
    }


def failed(error: Exception) -> dict[str, Any]:
    """The outcome of a question that has no answer; it is asked again by the next run."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {
        "answer": "", "abstained": False, "error": text, "hits": [], "prefixes": [[0, 0] for _ in BUDGETS],
        "selected": [], "context": [], "citations": [], "tokens": 0, "seconds": {},
        "generation": None, "encoder": None, "gold": None,
    }  # fmt: skip


def prefixes(hits: Sequence[Hit], counter: TokenCounter) -> list[list[int]]:
    """For each budget how many of the first hits fit whole, and where the part of the next one ends (0: no part)."""
    found: list[list[int]] = []
    at = spent = 0
    for budget in BUDGETS:
        while at < len(hits) and spent + (cost := counter.count(hits[at].chunk.text)) <= budget:
            spent += cost
            at += 1
        end = 0
        if at < len(hits) and budget > spent:
            chunk = hits[at].chunk
            end = chunk.span.start + counter.offsets(chunk.text)[budget - spent - 1][1]
        found.append([at, end])
    return found
