"""Which way from hits to the first token is the cheapest, by the share of chunks whose KV is kept already.

A way costs `warm` seconds where the KV of every chunk is kept, and `make` seconds more where none is; in between, the
part of `make` that is missing. A way that keeps nothing has `make` 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

__all__ = ["Way", "advice", "choose", "seconds", "threshold"]


@dataclass(frozen=True, slots=True)
class Way:
    """`loss` is how many nats a token of the gold answer is less likely than behind the whole context, computed."""

    name: str
    warm: float
    make: float
    loss: float


def seconds(way: Way, share: float) -> float:
    """CPU seconds to the first token where `share` of the chunks, 0 to 1, are kept."""
    return way.warm + (1 - share) * way.make


def threshold(way: Way, limit: float) -> float | None:
    """The smallest share of kept chunks from which on `way` costs at most `limit` seconds; None: at no share."""
    if way.warm > limit:
        return None
    return 0.0 if seconds(way, 0.0) <= limit else 1 - (limit - way.warm) / way.make


def choose(ways: Sequence[Way], share: float, bound: float) -> Way:
    """The cheapest way at this share with a loss of at most `bound`; the one with the least loss where none has."""
    fits = [way for way in ways if way.loss <= bound]
    if not fits:
        return min(ways, key=lambda way: (way.loss, way.name))
    return min(fits, key=lambda way: (seconds(way, share), way.loss, way.name))


def advice(ways: Sequence[Way], bound: float) -> list[str]:
    """`choose` in words, one line for every stretch of shares with the same answer."""
    meet = {0.0, 1.0}
    for one, other in combinations(ways, 2):
        if slope := one.make - other.make:
            share = (seconds(one, 0.0) - seconds(other, 0.0)) / slope
            meet |= {share} if 0 < share < 1 else set()
    stretches: list[tuple[float, float, Way]] = []
    for low, high in pairwise(sorted(meet)):
        best = choose(ways, (low + high) / 2, bound)
        if stretches and stretches[-1][2] is best:
            stretches[-1] = (stretches[-1][0], high, best)
        else:
            stretches.append((low, high, best))
    return [
        f"{low:.0%} to {high:.0%} of chunks kept: {way.name}; {seconds(way, low):.3f} to {seconds(way, high):.3f} s "
        f"to the first token, {way.loss:+.2f} nats lost a token of the answer"
        for low, high, way in stretches
    ]
