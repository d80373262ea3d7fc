"""Nothing is repaired: the blocks are used as they are."""

from __future__ import annotations

from dataclasses import dataclass

from rag.engine.cache import KvCache
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.repair._base import TokenRepair

__all__ = ["Naive"]


@dataclass(frozen=True, kw_only=True)
class Naive(TokenRepair):
    """The cheapest, and the farthest from full prefill."""

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        return ()
