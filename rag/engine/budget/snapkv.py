"""SnapKV, arXiv 2404.14469: the prompt's last tokens vote, by their attention, for the earlier tokens that stay.

Votes of neighbours are pooled, so that what stands around a wanted token stays too. Every layer and head chooses alone.

Deviations: votes of the query heads that share a kv head are summed, so that they keep one set; the first `sink` tokens
always stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from rag.engine.attend import WindowVotes
from rag.engine.budget._base import KvBudget
from rag.engine.errors import EngineError

__all__ = ["SnapKv"]


@dataclass(frozen=True, kw_only=True)
class SnapKv(KvBudget):
    """The last `window` tokens, the first `sink`, and of the others those with the most votes, `budget` in all; a token
    has the highest vote among the `kernel` tokens around it (odd)."""

    budget: int = 1024
    window: int = 32
    kernel: int = 7
    sink: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.sink < 0 or self.window + self.sink > self.budget:
            raise EngineError(
                "snapkv: window must be >= 1, sink >= 0, and both together at most budget, not "
                f"{self.window}, {self.sink} and {self.budget}"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise EngineError(f"snapkv: kernel must be odd and >= 1, not {self.kernel}")

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        return [self._of(votes.of_layer[layer], length) for layer in range(layers)]

    def _of(self, votes: Tensor, length: int) -> Tensor:
        before = length - self.window
        scores = max_pool1d(votes[:, :before], self.kernel, stride=1, padding=self.kernel // 2)
        scores[:, : self.sink] = torch.inf
        chosen = scores.topk(self.budget - self.window, dim=-1).indices.sort(dim=-1).values
        recent = torch.arange(before, length, device=votes.device).expand(len(votes), -1)
        return torch.cat((chosen, recent), dim=-1)
