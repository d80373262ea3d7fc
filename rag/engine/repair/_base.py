"""The one interface of repair policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rag.engine.cache import KvCache
    from rag.engine.layout import Layout
    from rag.engine.model import EngineModel

__all__ = ["RepairPolicy"]


class RepairPolicy(Protocol):
    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        """Ascending positions inside the blocks of `layout`; `cache` is assembled and stays as it is."""
