"""Reads back what a store beside the index keeps, and compares all of it with the index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rag.protocols import Corpus, Vectors
    from rag.types import Chunk

    Part = tuple[Sequence[int], Sequence[str] | None, Vectors | None]

__all__ = ["compare"]


def compare(
    corpus: Corpus, parts: Iterable[Part], name_of: Callable[[int, Chunk], str], *, tolerance: float = 0.0
) -> tuple[int, list[str]]:
    """(chunks that are kept as the index has them, what is wrong in words that follow "the store").

    A part is (rows, names of their contents, their vectors); None for what a store does not keep, or keeps rounded.
    """
    import numpy as np

    left, same = {int(row) for row in corpus.rows()}, 0
    foreign = other_names = other_vectors = 0
    for rows, names, matrix in parts:
        at = [number for number, row in enumerate(rows) if row in left]
        foreign += len(rows) - len(at)  # unknown, or kept twice
        if not at:
            continue
        known = [int(rows[number]) for number in at]
        left.difference_update(known)
        good = np.ones(len(at), dtype=bool)
        if names is not None:
            ours = [name_of(row, chunk) for row, chunk in zip(known, corpus.chunks(known), strict=True)]
            good = np.array([names[number] == one for number, one in zip(at, ours, strict=True)])
            other_names += int((~good).sum())
        if matrix is not None:
            near = np.abs(matrix[at] - corpus.vectors(known)[1]).max(axis=1) <= tolerance
            other_vectors += int((~near).sum())
            good &= near
        same += int(good.sum())
    told = {
        f"lacks {len(left)} chunks": left,
        f"has {foreign} records that are not in the index": foreign,
        f"has {other_names} chunks with other ids or contents": other_names,
        f"has {other_vectors} chunks with other vectors": other_vectors,
    }
    return same, [line for line, count in told.items() if count]
