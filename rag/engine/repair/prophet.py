"""ProphetKV, arXiv 2602.02579: the question chooses which reused tokens are computed again.

First the new tokens alone run behind the assembled cache, and what the question attends to is summed over heads and
layers. Then the reused tokens that got the most attention run again, together with the new ones: what the question
reads is exact, what it does not read may stay as it was.

Deviations: the layers are fused by their plain sum; the paper's weights were not checked against its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.repair._asking import QuestionRepair, check_asking

__all__ = ["Prophet"]


@dataclass(frozen=True, kw_only=True)
class Prophet(QuestionRepair):
    """Repairs the `share` of the reused tokens that the last `window` new tokens (0: all of them) attend to most."""

    share: float = 0.2
    window: int = 0

    def __post_init__(self) -> None:
        check_asking("prophet", self.share, self.window)

    def asking(self, new: Sequence[int]) -> Sequence[int]:
        return new[-self.window :]

    def weigh(self, votes: Tensor, cache: KvCache, layer: int) -> Tensor:
        return votes.sum(0)
