"""Whole sentences in an order, as many as fit a target, refilled where they fall short of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compressors._band import Lumps, met
from compressors._words import Part, kept_spans
from rag.protocols import TokenCounter
from rag.spans.pieces import count_kept
from rag.text import SEPARATOR
from rag.types import Bubble

__all__ = ["fitted_whole"]


def fitted_whole(
    bubble: Bubble, parts: Sequence[Part], order: Sequence[int], target: int, counter: TokenCounter
) -> list[list[bool]]:
    """Which parts of one unit each stay. What a refill counts as the gain of a part falls with its place in the order,
    from 1 down to 1 / n.
    """
    lumps = Lumps(
        tokens={number: part.size for number, part in enumerate(parts)},
        owners={number: part.place for number, part in enumerate(parts)},
        gains={number: 1 - at / len(order) for at, number in enumerate(order)},
        separator=counter.count(SEPARATOR),
        needs={},
    )

    def flags(chosen: Iterable[int]) -> list[list[bool]]:
        there = set(chosen)
        return [[number in there] for number in range(len(parts))]

    def count(chosen: set[int]) -> int:
        return count_kept(bubble, kept_spans(parts, flags(chosen), len(bubble.hits)), counter)

    return flags(met(lambda budget: lumps.taken(order, budget), count, lumps, target).chosen)
