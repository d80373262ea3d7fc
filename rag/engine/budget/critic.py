"""CRITIC, arXiv 2504.01281: a token's importance is the attention it got and how widely it looked itself.

Both are scaled to [0, 1] over the tokens of each layer and added with weights.

Deviations: the attention is that which a token got from the others (columns; rows of a softmax sum to 1). Entropy is
divided by the logarithm of how many tokens could be seen, or it would grow with the position alone. The gradient is
left out (`w_g` = 0): it costs a backward pass a step. The paper names no weights; both are a half here. The number
that stays is `budget`, not a share of the prompt that falls with free memory. The first `sink` and the last `window`
tokens always stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.budget._base import KvBudget
from rag.engine.budget._choose import top_slots
from rag.engine.errors import EngineError

__all__ = ["Critic"]


@dataclass(frozen=True, kw_only=True)
class Critic(KvBudget):
    """`budget` tokens of every layer, the same for all its heads; `w_a` and `w_e` weigh attention and entropy."""

    budget: int = 1024
    w_a: float = 0.5
    w_e: float = 0.5
    window: int = 32
    sink: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.sink < 0 or self.window + self.sink > self.budget:
            raise EngineError(
                "critic: window must be >= 1, sink >= 0, and both together at most budget, not "
                f"{self.window}, {self.sink} and {self.budget}"
            )
        if min(self.w_a, self.w_e) < 0 or abs(self.w_a + self.w_e - 1) > 1e-6:
            raise EngineError(f"critic: w_a and w_e must be >= 0 and sum to 1, not {self.w_a} and {self.w_e}")

    @property
    def whole(self) -> bool:
        return True

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        could_see = torch.arange(1, length + 1).clamp_min(2).log()
        chosen = []
        for layer in range(layers):
            entropy = votes.entropy[layer] / could_see.to(votes.entropy[layer].device)
            scores = self.w_a * _scaled(votes.received[layer].sum(0)) + self.w_e * _scaled(entropy)
            chosen.append(top_slots(scores[None], self.budget, first=self.sink, last=self.window))
        return chosen


def _scaled(values: Tensor) -> Tensor:
    least, most = values.min(), values.max()
    return (values - least) / (most - least).clamp_min(torch.finfo(values.dtype).tiny)
