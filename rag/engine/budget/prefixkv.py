"""PrefixKV, arXiv 2412.03409: every layer keeps the tokens that hold the same share of its attention.

The tokens of a layer are sorted by importance, the attention that they got from all tokens of the prompt, mean over
heads. One threshold for all layers, found by binary search, says which share of a layer's importance its kept tokens
hold together: a layer whose attention rests on few tokens keeps few.

Deviations: tokens that always stay count before all others. The threshold is searched for every prompt, not once for
ten samples; what the search leaves over (less than one token a layer where shares differ) is not given out; nothing is
evicted while the answer is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.budget._base import KvBudget
from rag.engine.budget._choose import largest, ranked
from rag.engine.errors import EngineError

__all__ = ["PrefixKv"]


@dataclass(frozen=True, kw_only=True)
class PrefixKv(KvBudget):
    """`budget` slots a layer on average; the first `start_size` and the last `protect_size` tokens stay in every one.

    All heads of a layer keep the same tokens.
    """

    budget: int = 1024
    start_size: int = 4
    protect_size: int = 1

    def __post_init__(self) -> None:
        if self.start_size < 0 or self.protect_size < 1 or self.start_size + self.protect_size > self.budget:
            raise EngineError(
                "prefixkv: start_size must be >= 0, protect_size >= 1, and both together at most budget, not "
                f"{self.start_size}, {self.protect_size} and {self.budget}"
            )

    @property
    def window(self) -> int:
        return 0

    @property
    def whole(self) -> bool:
        return True

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        scores = torch.stack([votes.received[layer].sum(0) for layer in range(layers)]).double()
        order = ranked(scores, first=self.start_size, last=self.protect_size)
        sums = scores.gather(1, order).cumsum(-1)
        held = (sums / sums[:, -1:]).contiguous()
        least = self.start_size + self.protect_size

        def counts_at(share: float) -> list[int]:
            wanted = torch.full((layers, 1), share, dtype=held.dtype, device=held.device)
            return (torch.searchsorted(held, wanted)[:, 0] + 1).clamp(least, length).tolist()

        counts = largest(counts_at, self.budget * layers)
        return [order[layer, None, :count].sort().values for layer, count in enumerate(counts)]
