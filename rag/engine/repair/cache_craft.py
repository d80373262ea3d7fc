"""Cache-Craft, arXiv 2502.15734: a chunk that leaned on chunks that are not before it now is repaired more.

Every block was made behind some chunks and remembers what its tokens attended to (`rag.engine.observed`). With a, b the
mean attention of its tokens to those chunks and to itself, its context impact is 1 / (1 + exp(-a / b)). The overlap is
the share of the attention to chunks before it that went to those that stand before it now, times 1 - gamma, gamma being
the share of their pairs that changed order. Of its tokens the share alpha x impact x (1 - overlap) is computed again:
those that attended most to chunks before them.

Deviations: attention is the mean over layers and heads, per token of the chunk; one variant of each block is looked at;
there is no focusing on chunks while the answer is written. A block that was made behind no chunk has overlap 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rag.engine.blocks import AttentionBefore
from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.observed import chunk_name
from rag.engine.repair._base import TokenRepair

__all__ = ["CacheCraft"]


@dataclass(frozen=True, kw_only=True)
class CacheCraft(TokenRepair):
    """`alpha` scales the repaired share of every block. Blocks that remember no attention are left alone."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise EngineError(f"cache-craft: alpha must be >= 0, not {self.alpha}")

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        chosen: list[int] = []
        before: list[str] = []
        for place in layout.placed:
            seen = place.block.seen
            if seen is not None:
                share = min(1.0, self.alpha * _impact(seen) * (1 - _overlap(seen, before)))
                leaning = seen.inter.sum(1).tolist()
                order = sorted(range(len(leaning)), key=lambda row: (-leaning[row], row))
                chosen += sorted(place.start + row for row in order[: math.ceil(share * len(order))])
            before.append(chunk_name(place.block.ids))
        return tuple(chosen)


def _impact(seen: AttentionBefore) -> float:
    """In [0.5, 1)."""
    own = float(seen.intra.mean())
    inter = float(seen.inter.sum(1).mean())
    return 1 / (1 + math.exp(-min(inter / own, 50.0))) if own > 0 else 1.0


def _overlap(seen: AttentionBefore, before: Sequence[str]) -> float:
    """In [0, 1]: 1 where the same chunks stand before it in the same order."""
    mass = seen.inter.sum(0).tolist()
    total = sum(mass)
    if total <= 0:
        return 0.0
    there = {name: place for place, name in enumerate(before)}
    kept = [there[name] for name in seen.behind if name in there]
    beta = sum(given for name, given in zip(seen.behind, mass, strict=True) if name in there) / total
    pairs = list(combinations(kept, 2))
    turned = sum(1 for first, second in pairs if first > second) / len(pairs) if pairs else 0.0
    return float(beta * (1 - turned))
