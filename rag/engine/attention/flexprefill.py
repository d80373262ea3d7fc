"""FlexPrefill, arXiv 2502.20766: each head is judged by the last block of queries. If pooled keys predict where its
attention goes, all blocks of queries choose by pooled keys; otherwise they read the columns and diagonals that the last
block reads. Either takes as much as gathers the share gamma of the attention.

Deviations: a kv head reads what any of its query heads chose; blocks are those of the sequence, so the last one of a
pass may be short, and then the last `block_size` queries still judge; `max_budget` is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["FlexPrefill"]


@dataclass(frozen=True, kw_only=True)
class FlexPrefill(Selection):
    """`gamma`: the share of the attention to gather; 1 reads all. `tau`: the largest distance, the root of the Jensen-
    Shannon divergence, at which pooled keys are trusted. At least `min_budget` slots of columns and of diagonals each.
    Passes over no more slots than that, or than two blocks, are dense, and so is decoding."""

    name: ClassVar[str] = "flexprefill"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "pass"
    gamma: float = 0.9
    tau: float = 0.1
    min_budget: int = 512
    block_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1 or self.tau < 0 or self.block_size < 1 or self.min_budget < self.block_size:
            raise EngineError(
                "flexprefill: gamma must lie in (0, 1], tau be >= 0, block_size >= 1 and min_budget at least one "
                f"block, not {self.gamma}, {self.tau}, {self.block_size} and {self.min_budget}"
            )

    @property
    def label(self) -> str:
        return f"{self.name}({self.gamma:g})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.queries == 1 or step.slots <= max(2 * self.block_size, self.min_budget):
            return None
        blocks = Blocks.of(step, self.block_size, size=self.block_size)
        keys = self._pooled(step.key.detach().transpose(-1, -2)) / self._pooled(step.key.new_ones(step.slots))
        given, aware = self._judged(step, keys)
        own = torch.tensor(blocks.local, device=step.device)[:, None] // self.block_size
        back = own - torch.arange(keys.shape[-1], device=step.device)
        vertical = self._best(given.sum(3), aware)[..., None, :]
        slash = self._best(self._diagonals(step, given), aware)[..., back.clamp(min=0)]
        chosen = vertical | slash | (aware[..., None, None] & self._by_pooled(step, blocks, keys, back < 0))
        pages = blocks.stop // self.block_size
        mask = (chosen & (back > 0)).any(2)[..., :pages]
        return Kept(Units.pages(blocks.stop, self.block_size, step.device), blocks.rows, blocks.local, mask)

    def _pooled(self, slots: Tensor) -> Tensor:
        """Sums of the last dimension in blocks, of which the last may be short; float32."""
        of = torch.arange(slots.shape[-1], device=slots.device) // self.block_size
        room = slots.new_zeros(*slots.shape[:-1], -(-slots.shape[-1] // self.block_size), dtype=torch.float32)
        return room.index_add_(-1, of, slots.float())

    def _judged(self, step: Step, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The attention of the last queries (batch, kv heads, group, rows, slots), of which all sum to 1, and whether
        pooled keys predict it (batch, kv heads, group)."""
        query = step.grouped[:, :, :, -self.block_size :].detach()
        places = step.places[-self.block_size :].to(step.device)
        logits = (query.flatten(2, 3) @ step.key.detach().transpose(-1, -2)).float() * step.scaling
        unseen = torch.arange(step.slots, device=step.device) > places[:, None]
        logits = logits.reshape(*query.shape[:4], -1).masked_fill(unseen, -torch.inf)
        given = logits.softmax(-1) / query.shape[3]
        guess = (query.float().mean(3) @ keys * step.scaling).softmax(-1)
        return given, _distance(guess, self._pooled(given.sum(3))) < self.tau

    def _best(self, mass: Tensor, aware: Tensor) -> Tensor:
        """(..., blocks): the blocks with the most of `mass` (..., slots), and the first one. As many as the slots that
        hold the share gamma of it fill; the least number where heads are query-aware."""
        held = mass.sort(dim=-1, descending=True).values.cumsum(-1)
        least = self.min_budget // self.block_size
        count = ((held < self._reach).sum(-1) + 1) // self.block_size + 1
        count = torch.where(aware, least, count.clamp(min=least))
        ranks = self._pooled(mass).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        best = ranks < count[..., None]
        best[..., 0] = True
        return best

    def _diagonals(self, step: Step, given: Tensor) -> Tensor:
        """(batch, kv heads, group, slots): the attention to what stands so many slots before a query."""
        places = step.places[-given.shape[3] :].to(step.device)
        back = (places[:, None] - torch.arange(step.slots, device=step.device)).clamp(min=0)
        return given.new_zeros(*given.shape[:3], step.slots).index_add_(-1, back.flatten(), given.flatten(3))

    def _by_pooled(self, step: Step, blocks: Blocks, keys: Tensor, unseen: Tensor) -> Tensor:
        """(batch, kv heads, group, blocks of rows, blocks): the fewest that hold the share gamma of all scores."""
        logits = blocks.means(step).detach().float() @ keys[:, :, None] * step.scaling
        scores = logits.masked_fill(unseen, -torch.inf).softmax(-1)
        ordered = scores.flatten(3).sort(dim=-1, descending=True, stable=True)
        short = ordered.values.cumsum(-1) - ordered.values < self._reach * scores.shape[3]
        kept = torch.zeros_like(short).scatter_(-1, ordered.indices, short)
        return kept.reshape(scores.shape)

    @property
    def _reach(self) -> float:
        return self.gamma if self.gamma < 1 else torch.inf


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """The root of the Jensen-Shannon divergence over the last dimension, natural logarithm."""
    middle = (a + b) / 2
    parts = [torch.special.xlogy(one, one) - torch.special.xlogy(one, middle) for one in (a, b)]
    divergence: Tensor = (parts[0] + parts[1]).sum(-1) / 2
    return divergence.clamp(min=0).sqrt()
