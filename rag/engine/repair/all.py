"""Everything is repaired: the same result as full prefill at its full price. For tests and audits."""

from __future__ import annotations

from dataclasses import dataclass

from rag.engine.cache import KvCache
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.repair._base import TokenRepair

__all__ = ["All"]


@dataclass(frozen=True, kw_only=True)
class All(TokenRepair):
    """The reference that other policies are measured against."""

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        return tuple(position for place in layout.placed for position in range(place.start, place.stop))
