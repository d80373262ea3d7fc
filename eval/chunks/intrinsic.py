"""Structure measures that need no question: block integrity and reference completeness on published structure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["block_integrity", "reference_completeness"]

_SLACK = 5  # characters at the edges of a block in which a cut does no harm

Spans = Sequence[tuple[int, int]]


def block_integrity(chunks: Spans, borders: Sequence[int]) -> float | None:
    """Share of blocks that no chunk start parts; a cut within 5 characters of a block's edge parts nothing.

    Source: BI of Adaptive Chunking (arXiv 2603.25333). `borders` are consecutive block borders. None without blocks.
    """
    blocks = list(pairwise(sorted(set(borders))))
    if not blocks or not chunks:
        return None
    starts = sorted(start for start, _ in chunks)
    intact = 0
    for left, right in blocks:
        first = bisect_right(starts, left + _SLACK)
        intact += first == len(starts) or starts[first] >= right - _SLACK
    return intact / len(blocks)


def reference_completeness(chunks: Spans, pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> float | None:
    """Share of (entity, pronoun) pairs with no chunk border between the start of the first and the end of the second.

    Source: RC of Adaptive Chunking (arXiv 2603.25333): broken when a border b has start < b <= end; borders are chunk
    starts but the first and chunk ends but the last. None without pairs.
    Deviations: a pronoun before its entity makes a pair that can be broken too.
    """
    if not pairs or not chunks:
        return None
    ordered = sorted(chunks)
    borders = sorted({start for start, _ in ordered[1:]} | {end for _, end in ordered[:-1]})
    whole = 0
    for entity, pronoun in pairs:
        start, end = min(entity[0], pronoun[0]), max(entity[1], pronoun[1])
        at = bisect_right(borders, start)
        whole += at == len(borders) or borders[at] > end
    return whole / len(pairs)
