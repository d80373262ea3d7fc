"""Lazy greedy and swaps: what tree search is to be compared with, at equal calls of the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from retrievers.selectors._tree import Worth

__all__ = ["greedy_swap"]


def greedy_swap(utility: Worth, costs: Sequence[int], *, root: frozenset[int], budget: int, limit: int) -> list[int]:
    """Items to add to `root`, in the order they were added: the largest gain that fits, then swaps that help.

    A gain that was found for a smaller set is taken for a bound, which holds for submodular functions and is a guess
    for others. A swap puts an item that is not in the set into the place of one that was added, where it fits; after
    one, whatever fits is added. It ends when no swap helps, or `utility.calls` reaches `limit`; what is known is free.
    """
    added: list[int] = []
    _fill(utility, costs, root, added, budget, limit)
    improved = True
    while improved and utility.calls < limit:
        improved = _swap(utility, costs, root, added, budget, limit)
        if improved:
            _fill(utility, costs, root, added, budget, limit)
    return added


def _fill(
    utility: Worth, costs: Sequence[int], root: frozenset[int], added: list[int], budget: int, limit: int
) -> None:
    """Lazy greedy from what is there on, until nothing more fits."""
    chosen = root.union(added)
    spent = sum(costs[at] for at in chosen)
    queue = [(-utility.most, at, -1) for at in range(len(costs)) if at not in chosen]
    heapify(queue)
    while queue:
        _, at, size = heappop(queue)
        if spent + costs[at] > budget:
            continue
        if size < len(chosen):
            grown = chosen | {at}
            if utility.calls >= limit and not utility.knows(grown):
                return
            heappush(queue, (-round(utility(grown) - utility(chosen), 6), at, len(chosen)))
            continue
        added.append(at)
        chosen |= {at}
        spent += costs[at]


def _swap(
    utility: Worth, costs: Sequence[int], root: frozenset[int], added: list[int], budget: int, limit: int
) -> bool:
    """Makes the first swap that helps, the items that were added last first; False when there is none."""
    chosen = root.union(added)
    spent, now = sum(costs[at] for at in chosen), utility(chosen)
    others = [at for at in range(len(costs)) if at not in chosen]
    for place in reversed(range(len(added))):
        out = added[place]
        for at in others:
            if spent - costs[out] + costs[at] > budget:
                continue
            other = chosen - {out} | {at}
            if utility.calls >= limit and not utility.knows(other):
                return False
            if utility(other) > now:
                added[place] = at
                return True
    return False
