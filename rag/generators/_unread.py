"""Chunks that no token reads, in prompts whose chunks are reused: their places stay, without keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rag.engine.blocks import KvBlock
from rag.engine.cache import KvCache
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair import RepairPolicy

__all__ = ["PLAIN_REPAIRS", "empty_block", "without"]

PLAIN_REPAIRS = ("all", "naive", "epic", "variance", "first-variance")
"""Repairs that name tokens before anything is computed. All others let tokens read every chunk, or may choose one that
does."""


def empty_block(engine: EngineModel, ids: Sequence[int]) -> KvBlock:
    """A block of `ids` that takes no memory; nothing may read it."""
    nothing = torch.zeros((), dtype=engine.dtype).expand(engine.layers, engine.kv_heads, len(ids), engine.head_dim)
    return KvBlock(tuple(ids), nothing, nothing, engine.fingerprint)


def without(blocks: Sequence[KvBlock | Sequence[int]], skipped: Sequence[int], policy: RepairPolicy) -> RepairPolicy:
    """`policy`, to which there are none of the blocks that stand at `skipped` in a prompt, of which `blocks` are all
    but the start. It writes nothing in their slots and repairs none of them."""
    if not skipped:
        return policy
    return _Without(policy, frozenset(id(blocks[place - 1]) for place in skipped))


@dataclass(frozen=True)
class _Without(RepairPolicy):
    inner: RepairPolicy
    skipped: frozenset[int]
    """The blocks, by `id`."""

    def _left(self, layout: Layout) -> Layout:
        return replace(layout, placed=tuple(one for one in layout.placed if id(one.block) not in self.skipped))

    def assemble(self, model: EngineModel, cache: KvCache, layout: Layout) -> None:
        self.inner.assemble(model, cache, self._left(layout))

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        left = self._left(layout)
        return self.inner.finish(model, cache, left, chunk_tokens=chunk_tokens, keep_going=keep_going)
