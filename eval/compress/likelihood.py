"""How likely the gold answer is to a small language model that has read a context."""

from __future__ import annotations

from collections.abc import Sequence

from eval.compress.rows import Asked, Row
from eval.runs.likelihood import nats_per_token
from rag.protocols import TextModel
from rag.text import assemble
from rag.types import CompressedContext

__all__ = ["answer_likelihood", "likelihoods"]

_LONGEST = 80
"""Characters of an answer that is asked for: longer ones are sentences, and measure copying."""


def likelihoods(asked: Sequence[Asked], rows: Sequence[Row], model: TextModel, limit: int) -> dict[int, list[float]]:
    """Number of the row -> mean nats a token of the shortest answer, for the first `limit` questions with a short one.

    Higher is better, 0 at best. Only questions whose evidence is whole in the context before compression are asked.
    """
    chosen = [
        at for at, one in enumerate(asked) if one.question.answers and len(_answer(one)) <= _LONGEST and _whole(one)
    ][:limit]
    return {
        number: [answer_likelihood(model, row.contexts[at], _answer(asked[at])) for at in chosen]
        for number, row in enumerate(rows)
    }


def answer_likelihood(model: TextModel, context: CompressedContext, answer: str) -> float:
    """Mean ln p of the tokens of the answer after the context and the question."""
    before = f"{assemble(piece.text for piece in context.pieces)}\n\nQuestion: {context.question}\nAnswer:"
    nats = nats_per_token(model, answer, before)
    assert nats is not None  # noqa: S101 - the local model tells them, and an answer has tokens
    return -nats


def _answer(one: Asked) -> str:
    return min(one.question.answers, key=lambda answer: (len(answer), answer))


def _whole(one: Asked) -> bool:
    spans = [
        (hit.chunk.doc_id, span.start, span.end)
        for hit, kept in zip(one.bubble.hits, one.bubble.spans, strict=True)
        for span in kept
    ]
    return all(any(name == d and a <= start and end <= b for d, a, b in spans) for name, start, end in one.evidence)
