"""What a set of chunks is worth, and Monte Carlo tree search for the best set within a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import ceil, log, sqrt
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

    Values = NDArray[np.float64]

__all__ = ["Tree", "Utility", "Worth", "greedy_set"]

_TINY = 1e-9


class Worth(Protocol):
    """What a set of items is worth; `most` bounds the gain of an item, `calls` counts the sets that were scored."""

    calls: int

    @property
    def most(self) -> float: ...

    def knows(self, items: frozenset[int]) -> bool:
        """True when asking costs no call."""

    def __call__(self, items: frozenset[int]) -> float: ...


class Utility:
    """f(S) = (IDF share of the question's words in S) + alpha * sum_u rel(u) * max_{s in S} sim(u, s) / sum_u rel(u).

    Monotone and submodular, from 0 to 1 + alpha. `said` (n, terms), `share` (terms,) sums to 1, `relevance` (n,) >= 0,
    `similarity` (n, n); both are rounded, so that last bits decide nothing. `calls` counts the sets that were scored;
    one that is known already is free.
    """

    def __init__(
        self,
        said: NDArray[np.bool_],
        share: Values,
        relevance: Values,
        similarity: Vectors,
        alpha: float,
    ) -> None:
        import numpy as np

        relevance = relevance.round(6)
        total = float(relevance.sum()) or 1.0
        self.calls = 0
        self.most = 1.0 + alpha
        self._said, self._share = said, share
        self._weight = alpha * relevance / total
        self._similarity = np.clip(similarity.astype(np.float64).round(6), 0.0, 1.0)
        self._known: dict[frozenset[int], float] = {frozenset(): 0.0}

    def knows(self, items: frozenset[int]) -> bool:
        return items in self._known

    def __call__(self, items: frozenset[int]) -> float:
        found = self._known.get(items)
        if found is None:
            self.calls += 1
            rows = sorted(items)
            words = float(self._share[self._said[rows].any(axis=0)].sum())
            found = round(words + float(self._weight @ self._similarity[rows].max(axis=0)), 12)
            self._known[items] = found
        return found


class _Node:
    """A set of items. `queue` holds (-bound of the gain, item, size of the set that the bound is of)."""

    def __init__(self, items: frozenset[int], cost: int, queue: list[tuple[float, int, int]]) -> None:
        self.items, self.cost, self.queue = items, cost, queue
        self.children: list[int] = []
        self.visits = 0
        self.value = 0.0
        self.done = False


class Tree:
    """CORAG's tree: sets that grow from `root` by one item of `items` at a time, up to `budget` tokens in all.

    A path goes down by the upper confidence bound V / N + c * sqrt(ln N_parent / N) - lam * cost / budget, opens one
    new child, and then follows first children to the end. Its reward is the worth of the set there, scaled from 0 for
    the least reward so far to 1 for the largest. A node opens its children by falling gain, at most
    min(`width`, ceil(2 sqrt N)) of them after N visits. The first path of all is thereby that of lazy greedy (that of
    greedy, where gains never grow), and no set that is returned is worth less. Sets that are reached in another order
    are the same node.
    """

    def __init__(
        self,
        utility: Worth,
        costs: Sequence[int],
        *,
        root: frozenset[int],
        budget: int,
        limit: int,
        c: float,
        lam: float,
        width: int,
    ) -> None:
        self._utility, self._costs, self._budget, self._limit = utility, costs, budget, limit
        self._c, self._lam, self._width = c, lam, width
        left = [at for at in range(len(costs)) if at not in root]
        self._root = _Node(root, sum(costs[at] for at in root), [(-utility.most, at, -1) for at in left])
        self._nodes = {root: self._root}
        self._low = self._high = 0.0

    def search(self) -> list[int]:
        """The items of the best set that are not in the root, in the order they were added.

        It ends when the whole tree is known, or `utility.calls` reaches the limit.
        """
        best: list[int] | None = None
        while not self._root.done and self._utility.calls < self._limit:
            path, added = self._walk()
            reached = self._utility(path[-1].items)
            if best is None or reached > self._high:
                self._high = reached
                best = added
            self._low = min(self._low, reached) if self._root.visits else reached
            self._learn(path, reached)
            if len(path[-1].items) == len(self._costs):
                break
        return best or []

    def _walk(self) -> tuple[list[_Node], list[int]]:
        path, added, fresh = [self._root], list[int](), False
        while True:
            node = path[-1]
            at = None
            if fresh and node.children:
                at = node.children[0]
            elif fresh or self._may_open(node):
                at = self._open(node)
                fresh = fresh or at is not None
            if at is None and not fresh:
                at = self._descend(node)
            if at is None:
                return path, added
            added.append(at)
            path.append(self._nodes[node.items | {at}])

    def _may_open(self, node: _Node) -> bool:
        if len(node.children) >= self._width:
            return False
        open_children = [at for at in node.children if not self._nodes[node.items | {at}].done]
        return not open_children or len(node.children) < ceil(2 * sqrt(node.visits))

    def _open(self, node: _Node) -> int | None:
        """The next child by gain; None when nothing more fits, is wanted, or may be scored."""
        while node.queue and len(node.children) < self._width:
            bound, at, size = heappop(node.queue)
            cost = node.cost + self._costs[at]
            if cost > self._budget:
                continue
            grown = node.items | {at}
            if size < len(node.items):
                if self._utility.calls >= self._limit and not self._utility.knows(grown):
                    heappush(node.queue, (bound, at, size))
                    return None
                gain = round(self._utility(grown) - self._utility(node.items), 12)
                heappush(node.queue, (-gain, at, len(node.items)))
                continue
            if grown not in self._nodes:
                bounds = list(node.queue)
                bounds += [(-self._gain(node, other), other, len(node.items)) for other in node.children]
                heapify(bounds)
                self._nodes[grown] = _Node(grown, cost, bounds)
            node.children.append(at)
            return at
        return None

    def _gain(self, node: _Node, at: int) -> float:
        return round(self._utility(node.items | {at}) - self._utility(node.items), 12)

    def _descend(self, node: _Node) -> int | None:
        """The child with the largest bound, ties by the order of opening; children that are searched are left out."""
        open_children = [at for at in node.children if not self._nodes[node.items | {at}].done]
        if not open_children:
            return None
        return max(open_children, key=lambda at: (self._bound(node, at), -node.children.index(at)))

    def _bound(self, node: _Node, at: int) -> float:
        child = self._nodes[node.items | {at}]
        if not child.visits:
            return 1e9
        mean = (child.value / child.visits - self._low) / max(self._high - self._low, _TINY)
        explore = self._c * sqrt(log(max(node.visits, 1)) / child.visits)
        return round(mean + explore - self._lam * child.cost / self._budget, 6)

    def _learn(self, path: Sequence[_Node], reached: float) -> None:
        for node in reversed(path):
            node.visits += 1
            node.value += reached
            full = not any(cost + node.cost <= self._budget for cost in self._left(node))
            known = all(self._nodes[node.items | {at}].done for at in node.children)
            node.done = known and (full or len(node.children) >= self._width)

    def _left(self, node: _Node) -> list[int]:
        return [self._costs[at] for _, at, _ in node.queue]


def greedy_set(utility: Worth, costs: Sequence[int], budget: int) -> frozenset[int]:
    """The reference: the largest gain that fits, again and again, ties by number, until nothing fits."""
    chosen: frozenset[int] = frozenset()
    while True:
        spent = sum(costs[at] for at in chosen)
        fitting = [at for at in range(len(costs)) if at not in chosen and spent + costs[at] <= budget]
        if not fitting:
            return chosen
        chosen |= {max(fitting, key=lambda at: (utility(chosen | {at}), -at))}
