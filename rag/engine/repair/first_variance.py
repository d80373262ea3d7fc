"""The first tokens of every chunk and those that varied most over the donors: `epic` and `variance` in one pass.

Our own: the first repairs what a chunk took for the start of a text, the second what depends on the text before. Both
lists are known before the question.
"""

from __future__ import annotations

from dataclasses import dataclass

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.repair._base import TokenRepair
from rag.engine.repair.epic import Epic

__all__ = ["FirstVariance"]


@dataclass(frozen=True, kw_only=True)
class FirstVariance(TokenRepair):
    """Repairs the first `k` tokens of each block but the first, and on top of them those with the highest variance:
    as many as `share` of all measured tokens. A first block without a variance stands behind its true prefix."""

    k: int = 16
    share: float = 0.05

    def __post_init__(self) -> None:
        if self.k < 0 or not 0 <= self.share <= 1:
            raise EngineError(f"first-variance: k must be >= 0 and share in [0, 1], not {self.k} and {self.share}")

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        chosen = set(Epic(k=self.k).tokens_to_repair(layout, model, cache))
        scored = [
            (-value, place.start + row)
            for place in layout.placed
            if place.block.variance is not None
            for row, value in enumerate(place.block.variance.tolist())
        ]
        others = sorted(pair for pair in scored if pair[1] not in chosen)
        chosen.update(position for _, position in others[: round(self.share * len(scored))])
        return tuple(sorted(chosen))
