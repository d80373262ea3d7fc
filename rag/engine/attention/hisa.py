"""HISA, arXiv 2603.28458: two stages. Mean keys of blocks choose a few blocks, tokens are scored in those alone, and
the best are read.

Deviations: the paper's scores are those of DeepSeek's trained indexer; here the layer's own heads vote, each by its
softmax, and all read the same, as with one indexer; a block of `q_block` rows chooses by its mean query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention._choose import page_summaries
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Hisa"]


@dataclass(frozen=True, kw_only=True)
class Hisa(Selection):
    """`top_k` slots a row: those from the block of its row block on, and the best in `top_m` blocks of `block_size`
    before, of which the first and the last are always two."""

    name: ClassVar[str] = "hisa"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    top_k: int = 2048
    top_m: int = 64
    block_size: int = 128
    q_block: int = 128

    def __post_init__(self) -> None:
        if min(self.block_size, self.q_block) < 1 or self.top_m < 2 or self.top_k > self.top_m * self.block_size:
            raise EngineError(
                "hisa: block_size and q_block must be >= 1, top_m >= 2 and top_m blocks hold top_k slots, not "
                f"{self.block_size}, {self.q_block}, {self.top_m} and {self.top_k}"
            )
        if self.top_k < self.block_size + self.q_block:
            raise EngineError(f"hisa: top_k must hold block_size and q_block, not {self.top_k}")

    @property
    def budget(self) -> int:
        return self.top_k

    def select(self, step: Step, memory: Memory) -> Kept | None:
        blocks = Blocks.of(step, self.q_block, size=self.block_size)
        pages = blocks.stop // self.block_size
        means = page_summaries(
            step, memory, "means", self.block_size, pages, step.key.shape[3], lambda keys: keys.mean(3)
        )
        query = blocks.means(step)
        mask = torch.zeros(step.batch, 1, len(blocks.local), blocks.stop, dtype=torch.bool, device=step.device)
        for at, (local, own) in enumerate(zip(blocks.local, blocks.own, strict=True)):
            if local:
                one = query[:, :, :, at]
                coarse = self._blocks(one, means[:, :, : local // self.block_size], step.scaling)
                mask[:, 0, at].scatter_(-1, self._tokens(step, one, coarse, self.top_k - own), True)
        return Kept(Units.pages(blocks.stop, 1, step.device), blocks.rows, blocks.local, mask)

    def _blocks(self, query: Tensor, means: Tensor, scaling: float) -> Tensor:
        """(batch, blocks): the numbers of those in which tokens are scored. `query` (batch, kv heads, group, d)."""
        votes = _votes(query, means, scaling)
        votes[:, 0] = votes[:, -1] = torch.inf
        return votes.topk(min(self.top_m, votes.shape[-1]), dim=-1).indices

    def _tokens(self, step: Step, query: Tensor, coarse: Tensor, left: int) -> Tensor:
        """(batch, at most left): the best slots in the blocks."""
        slots = coarse[..., None] * self.block_size + torch.arange(self.block_size, device=step.device)
        slots = slots.flatten(1).sort(dim=-1).values
        index = slots[:, None, :, None].expand(-1, step.kv_heads, -1, step.key.shape[3])
        votes = _votes(query, step.key.detach().gather(2, index), step.scaling)
        best = votes.topk(min(left, votes.shape[-1]), dim=-1).indices
        return slots.gather(-1, best)


def _votes(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """(batch, keys): what the heads' softmax gives to each key, summed. `keys` (batch, kv heads, keys, d)."""
    votes: Tensor = ((query.detach() @ keys.transpose(-1, -2)).float() * scaling).softmax(-1).sum((1, 2))
    return votes
