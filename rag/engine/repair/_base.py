"""The interfaces of repair policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rag.engine.cache import KvCache
from rag.engine.chunks import assemble, complete
from rag.engine.layout import Layout, Placed
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill

__all__ = ["RepairPolicy", "TokenRepair", "first_tokens"]


class RepairPolicy(Protocol):
    def assemble(self, model: EngineModel, cache: KvCache, layout: Layout) -> None:
        """Writes the blocks behind the prefix that `cache` holds."""
        assemble(model, cache, layout)

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        """Computes the fresh tokens, and again what is worth it, behind an assembled cache."""


class TokenRepair(RepairPolicy, Protocol):
    """A policy that names reused tokens; they run through all layers."""

    def tokens_to_repair(self, layout: Layout, model: EngineModel, cache: KvCache) -> tuple[int, ...]:
        """Ascending positions inside the blocks of `layout`; `cache` is assembled and stays as it is."""

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        repair = self.tokens_to_repair(layout, model, cache)
        return complete(model, cache, layout, repair, chunk_tokens=chunk_tokens, keep_going=keep_going)


def first_tokens(placed: Sequence[Placed], k: int) -> tuple[int, ...]:
    """The positions of the first `k` tokens of each of `placed`, ascending."""
    return tuple(position for place in placed for position in range(place.start, min(place.start + k, place.stop)))
