"""InfoFlow KV, arXiv 2603.05353: the reused tokens whose values the question takes most of are computed again.

As in `prophet` the new tokens run first, alone. A token counts by the attention that the question gives it times the
length of its value, which is how much of it flows into the question; keys stand at their positions in the prompt.

Deviations: only the abstract was at hand: sums over heads and layers are our reading of its attention-norm signal, and
chunks are not reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.repair._asking import QuestionRepair, check_asking

__all__ = ["InfoFlow"]


@dataclass(frozen=True, kw_only=True)
class InfoFlow(QuestionRepair):
    """Repairs the `share` of the reused tokens of which the last `window` new tokens (0: all of them) take most."""

    share: float = 0.1
    window: int = 0

    def __post_init__(self) -> None:
        check_asking("info-flow", self.share, self.window)

    def asking(self, new: Sequence[int]) -> Sequence[int]:
        return new[-self.window :]

    def weigh(self, votes: Tensor, cache: KvCache, layer: int) -> Tensor:
        _, values = cache.kv_layers[layer].buffers()
        lengths = torch.linalg.vector_norm(values[0, :, : votes.shape[-1]], dim=-1, dtype=torch.float32)
        weight: Tensor = (votes * lengths).sum(0)
        return weight
