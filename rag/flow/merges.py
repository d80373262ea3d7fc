"""How the ends of branches become one state: hits fused by rank, answers weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rag.flow.state import Run, State
from rag.generators._support import content_words
from rag.prompt import MARKS
from rag.types import Chunk, Hit

__all__ = ["ensemble", "fuse", "fused"]

_RRF_K = 60
_SHARPNESS = 2.0
"""Scores are scaled to [0, 1] over the branches before the softmax: those of a fusion differ by thousandths."""
_AGREE = 0.5


def fuse(state: State, ends: Sequence[State], run: Run, how: str) -> tuple[State, Mapping[str, Any]]:
    """The state from before the branches with the hits of all of them, each list with weight 1."""
    hits = fused([end.hits for end in ends], [1.0] * len(ends), run, best=how == "best")
    return replace(state, hits=hits), {"lists": [len(end.hits) for end in ends]}


def fused(lists: Sequence[Sequence[Hit]], weights: Sequence[float], run: Run, *, best: bool = False) -> tuple[Hit, ...]:
    """Reciprocal rank fusion by chunk; ties by row. No more hits than the longest list has.

    `best`: beside the first list, a chunk counts where it stands highest only. A sum rewards what many lists agree
    on, which is right for paraphrases; the parts of a question want different chunks, and agree on neither's.
    """
    chunks: dict[str, Chunk] = {}
    first: dict[str, float] = {}
    others: dict[str, float] = {}
    for at, (hits, weight) in enumerate(zip(lists, weights, strict=True)):
        own = others if at else first
        for hit in hits:
            chunk_id, value = hit.chunk.id, weight / (_RRF_K + hit.rank)
            chunks.setdefault(chunk_id, hit.chunk)
            before = own.get(chunk_id, 0.0)
            own[chunk_id] = max(before, value) if best else before + value
    scores = {chunk_id: first.get(chunk_id, 0.0) + others.get(chunk_id, 0.0) for chunk_id in chunks}
    rounded = {chunk_id: round(score, 12) for chunk_id, score in scores.items()}
    row_of = dict(zip(rounded, run.index.corpus.rows_of(list(rounded)), strict=True))
    order = sorted(rounded, key=lambda one: (-rounded[one], row_of[one]))[: max(map(len, lists), default=0)]
    return tuple(
        Hit(chunk=chunks[one], score=rounded[one], rank=rank, retriever="rrf", parts={"rrf": rounded[one]})
        for rank, one in enumerate(order, start=1)
    )


def ensemble(state: State, ends: Sequence[State], run: Run) -> tuple[State, Mapping[str, Any]]:
    """The end whose answer weighs most (REPLUG: Shi et al., arXiv 2301.12652), weights by retrieval score.

    p(y|q) = sum over branches d of weight(d) * p(y|q, d), token by token, where the model tells losses: each answer is
    read behind every branch's prompt. Else a vote: an answer gets the weights of the branches that say much the same.

    Deviations: the candidates are the branches' own answers, so no new text is decoded from the mixture; the mean over
    tokens is compared, else short answers would win; scores are min-max scaled before the softmax.
    """
    answered = [end for end in ends if end.generation is not None and end.generation.citations]
    if not answered:
        end = ends[0]
        return end, {"how": "no branch answers"}
    weights = _weights(answered)
    values = _likelihoods(answered, weights, run)
    how = "mixture of token probabilities" if values else "vote"
    values = values or _votes(answered, weights)
    best = max(range(len(answered)), key=lambda at: (round(values[at], 9), -at))
    notes = {"how": how, "answers": len(answered), "winner": best + 1, "values": [round(value, 4) for value in values]}
    return replace(answered[best], hits=state.hits, query=state.query), notes


def _weights(ends: Sequence[State]) -> list[float]:
    """Softmax over the best retrieval score of each branch."""
    scores = [max((hit.score for hit in end.hits), default=0.0) for end in ends]
    low, high = min(scores), max(scores)
    raw = [math.exp(_SHARPNESS * ((score - low) / (high - low) if high > low else 1.0)) for score in scores]
    return [value / sum(raw) for value in raw]


def _likelihoods(ends: Sequence[State], weights: Sequence[float], run: Run) -> list[float]:
    """Mean log of the mixture's token probabilities of each answer; [] where the model tells none."""
    model = run.text_model
    if model is None or any(end.generation is None or not end.generation.prompt.segments for end in ends):
        return []
    values = []
    for end in ends:
        text = _plain(end)
        told = []
        for other in ends:
            prompt = other.generation.prompt.text if other.generation else ""
            losses = model.losses(text, after=prompt)
            run.tokens += run.count(prompt) + run.count(text)
            if not losses:
                return []
            told.append([nats for _, _, nats in losses])
        mixed = [
            math.log(sum(weight * math.exp(-nats) for weight, nats in zip(weights, column, strict=True)) or 1e-300)
            for column in zip(*told, strict=True)
        ]
        values.append(sum(mixed) / len(mixed))
    return values


def _votes(ends: Sequence[State], weights: Sequence[float]) -> list[float]:
    bags = [frozenset(content_words(_plain(end))) for end in ends]
    return [sum(w for other, w in zip(bags, weights, strict=True) if _same(bag, other)) for bag in bags]


def _same(one: frozenset[str], other: frozenset[str]) -> bool:
    return one == other or len(one & other) >= _AGREE * len(one | other) > 0


def _plain(end: State) -> str:
    """The answer without its marks, which belong to the context of one branch."""
    return " ".join(MARKS.sub("", end.generation.text).split()) if end.generation else ""
