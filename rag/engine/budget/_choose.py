"""Which slots score highest, and how many each layer gets of a common sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["largest", "ranked", "top_slots"]


def ranked(scores: Tensor, *, first: int = 0, last: int = 0) -> Tensor:
    """`scores` (rows, slots) as places in order: the `first` and `last` slots, then from the highest down; of equals
    the earlier."""
    held = scores.clone()
    held[:, :first] = torch.inf
    held[:, held.shape[-1] - last :] = torch.inf
    return held.argsort(dim=-1, descending=True, stable=True)


def top_slots(scores: Tensor, count: int, *, first: int = 0, last: int = 0) -> Tensor:
    """(rows, count), ascending: the leading ones of `ranked`."""
    return ranked(scores, first=first, last=last)[:, :count].sort(dim=-1).values


def largest(counts_at: Callable[[float], list[int]], total: int, *, high: float = 1.0) -> list[int]:
    """Of `counts_at(x)`, which grows with x from 0 to `high`, the largest whose sum is at most `total`, by binary
    search; that of 0 must be."""
    low, best = 0.0, counts_at(0.0)
    for _ in range(100):
        middle = (low + high) / 2
        counts = counts_at(middle)
        if sum(counts) <= total:
            low, best = middle, counts
        else:
            high = middle
    return best
