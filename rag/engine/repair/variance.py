"""The tokens whose KV varied most over the donors are computed again: a list that is known before the question.

Our own, for the blocks of `rag.engine.donor`. The first `first_tokens` of each block can be added, as EPIC repairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.repair._base import TokenRepair

__all__ = ["Variance"]


@dataclass(frozen=True, kw_only=True)
class Variance(TokenRepair):
    """Repairs the `share` of all measured tokens with the highest variance, over all blocks together.

    Blocks without a variance are left alone: they are those that stand behind their true prefix. `first_tokens` of each
    measured block come on top.
    """

    share: float = 0.15
    first_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.first_tokens < 0:
            raise EngineError(
                f"variance: share must lie in [0, 1] and first_tokens be >= 0, not {self.share} and {self.first_tokens}"
            )

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        scored: list[tuple[float, int]] = []
        chosen: set[int] = set()
        for place in layout.placed:
            if place.block.variance is None:
                continue
            scored += [(-value, place.start + i) for i, value in enumerate(place.block.variance.tolist())]
            chosen.update(range(place.start, min(place.start + self.first_tokens, place.stop)))
        chosen.update(position for _, position in sorted(scored)[: round(self.share * len(scored))])
        return tuple(sorted(chosen))
