"""D2O, arXiv 2406.13035: layers with dense attention keep more, and evicted tokens merge into kept ones like them.

How unevenly the tokens of a layer are attended to decides its share of the budget; inside a layer the recent tokens
stay, and those with the most attention so far. An evicted token merges into the kept one with the nearest key of its
head, if it is nearer than a threshold that moves with the similarities seen.

Deviations: unevenness is the variance of the attention that a layer's tokens got, without the sinks and relative to its
mean over the layers; shares of the budget are the softmax of its negative. The threshold starts at the mean similarity
of all evicted tokens and runs over them in the order of the text: nothing is evicted while the answer is written. Keys
are compared and averaged as they are rotated. `beta` and the parts `n` : `m` are ours to choose. The first `sink`
tokens stay, and nothing merges into them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.budget._base import KvBudget
from rag.engine.budget._choose import largest, top_slots
from rag.engine.budget._merge import Evicted, evicted_of, weighed_in
from rag.engine.errors import EngineError

__all__ = ["D2o"]


@dataclass(frozen=True, kw_only=True)
class D2o(KvBudget):
    """`budget` slots a layer on average, `n` parts for tokens with much attention and `m` for recent ones. With weight
    `beta` each similarity moves the threshold. The first `sink` tokens stay."""

    budget: int = 1024
    n: int = 3
    m: int = 1
    beta: float = 0.7
    sink: int = 4

    def __post_init__(self) -> None:
        if self.n < 0 or self.m < 1 or self.sink < 0 or self.sink + 1 >= self.budget:
            raise EngineError(
                "d2o: n must be >= 0, m >= 1, sink >= 0 and below budget - 1, not "
                f"{self.n}, {self.m} and {self.sink} of {self.budget}"
            )
        if not 0 <= self.beta <= 1:
            raise EngineError(f"d2o: beta must lie in [0, 1], not {self.beta}")

    @property
    def window(self) -> int:
        return 0

    @property
    def whole(self) -> bool:
        return True

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        received = [votes.received[layer] for layer in range(layers)]
        spread = torch.stack([one.sum(0)[self.sink :].var(correction=0) for one in received]).double()
        shares = (-spread / spread.mean().clamp_min(1e-30)).softmax(0).tolist()
        total = self.budget * layers

        def counts_at(scale: float) -> list[int]:
            return [min(length, max(self.sink + 1, math.floor(scale * total * share))) for share in shares]

        # the scale may pass 1: what layers cannot use, because they keep everything, goes to the others
        counts = largest(counts_at, total, high=layers * length / (total * min(shares)))
        return [self._of(one, count) for one, count in zip(received, counts, strict=True)]

    def _of(self, received: Tensor, count: int) -> Tensor:
        recent = max(1, (count - self.sink) * self.m // (self.n + self.m))
        return top_slots(received, count, first=self.sink, last=recent)

    def merge(
        self, layer: int, keys: Tensor, values: Tensor, slots: Tensor, votes: WindowVotes
    ) -> tuple[Tensor, Tensor] | None:
        if slots.shape[-1] == keys.shape[1]:
            return None
        evicted = evicted_of(keys, slots)
        like = self._above(evicted) & (evicted.nearest >= self.sink)
        weights = evicted.cosine.exp() * like
        own = torch.full(slots.shape, math.e, device=keys.device)  # a key's cosine with itself is 1
        return weighed_in(keys, slots, own, evicted, weights), weighed_in(values, slots, own, evicted, weights)

    def _above(self, evicted: Evicted) -> Tensor:
        """(kv heads, evicted): whether each is nearer than the mean that moved up to it."""
        rows: list[list[bool]] = []
        for cosines in evicted.cosine.tolist():
            start = sum(cosines) / len(cosines)
            moved = accumulate(cosines, lambda mean, new: self.beta * new + (1 - self.beta) * mean, initial=start)
            rows.append([one >= bar for one, bar in zip(cosines, moved, strict=False)])  # the bar before it
        return torch.tensor(rows, device=evicted.cosine.device)
