"""LongHeads, arXiv 2402.10685: the context in chunks, each with a key that attention pools from its own keys; every
head reads the first chunk, the last ones, and those whose key fits its query best.

Deviations: no new positions are given to the keys read, so this saves work but does not lengthen what a model can read;
the pooling query is the mean of the attention of a chunk's keys to each other, not of its queries, which are no longer
there in a cache; query heads that share a kv head choose together, by the sum of their softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention._choose import fill, page_summaries
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["LongHeads"]


@dataclass(frozen=True, kw_only=True)
class LongHeads(Selection):
    """`attention_length` slots in chunks of `chunk_size`: the first, the one in which the block of rows begins, the one
    before that, and the best others."""

    name: ClassVar[str] = "longheads"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    attention_length: int = 4096
    chunk_size: int = 256
    q_block: int = 256

    def __post_init__(self) -> None:
        if self.chunk_size < 1 or not 1 <= self.q_block <= self.chunk_size:
            raise EngineError(
                f"longheads: q_block must lie in [1, chunk_size], not {self.q_block} of {self.chunk_size}"
            )
        if self.attention_length < 4 * self.chunk_size or self.chunk_size % self.q_block:
            raise EngineError(
                "longheads: attention_length must hold 4 chunks and q_block divide chunk_size, not "
                f"{self.attention_length} of {self.chunk_size} and {self.q_block}"
            )

    @property
    def label(self) -> str:
        return f"{self.name}({self.attention_length})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        size = self.chunk_size
        blocks = Blocks.of(step, self.q_block, size=size, back=size)
        units = Units.pages(blocks.stop, size, step.device)
        keys = page_summaries(
            step, memory, "pooled", size, len(units), step.key.shape[3], lambda one: _pooled(one, step.scaling)
        )
        later = blocks.later(units.starts)
        logits = (blocks.means(step).flatten(2, 3) @ keys.transpose(-1, -2)).float() * step.scaling
        logits = logits.reshape(step.batch, step.kv_heads, step.group, len(blocks.local), -1)
        votes = logits.masked_fill(later, torch.finfo(logits.dtype).min).softmax(-1).sum(2)
        first = (units.starts == 0).expand_as(votes)
        one = torch.ones((), dtype=torch.long, device=step.device)
        mask = fill(votes.masked_fill(later, -torch.inf), one, self.attention_length // size - 2, first)
        return Kept(units, blocks.rows, blocks.local, mask)


def _pooled(keys: Tensor, scaling: float) -> Tensor:
    """(batch, kv heads, chunks, d) of the keys (batch, kv heads, chunks, size, d)."""
    across = keys.transpose(-1, -2)
    query = ((keys @ across).float() * scaling).softmax(-1).to(keys.dtype).mean(3, keepdim=True) @ keys
    pooled: Tensor = ((query @ across).float() * scaling).softmax(-1).to(keys.dtype) @ keys
    return pooled[..., 0, :]
