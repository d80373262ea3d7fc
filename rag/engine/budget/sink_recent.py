"""StreamingLLM, arXiv 2309.17453: the first tokens, on which attention rests, and the most recent ones.

Deviations: keys keep the positions of the text instead of moving together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.budget._base import KvBudget
from rag.engine.errors import EngineError

__all__ = ["SinkRecent"]


@dataclass(frozen=True, kw_only=True)
class SinkRecent(KvBudget):
    """The first `sink` tokens and the last `budget` - `sink`."""

    budget: int = 1024
    sink: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.sink < self.budget:
            raise EngineError(f"sink-recent: sink must lie in [0, budget), not {self.sink} of {self.budget}")

    @property
    def window(self) -> int:
        return 0

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        recent = torch.arange(length - self.budget + self.sink, length)
        return [torch.cat((torch.arange(self.sink), recent))[None]] * layers
