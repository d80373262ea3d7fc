"""Quest, arXiv 2406.10774: pages of 16 tokens, each with the largest and smallest key in every dimension, which bound
the scores of all tokens in it; a query reads the pages with the highest bounds.

Deviations: the query heads that share a kv head read the same pages, those with the largest sum of the heads' softmax
over the bounds (the paper has no shared kv heads); `prefill` uses the bound with the mean query of a block of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._choose import fill, page_extremes, upper_bound
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Quest"]


@dataclass(frozen=True, kw_only=True)
class Quest(Selection):
    """`budget` slots a query in pages of `page_size`, at least 3 pages; the page of the query is one of them. The first
    `dense_layers` layers are dense, and so is prefill unless `prefill`, in blocks of `q_block` rows, says otherwise."""

    name: ClassVar[str] = "quest"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    budget: int = 1024
    page_size: int = 16
    dense_layers: int = 2
    prefill: bool = False
    q_block: int = 256

    def __post_init__(self) -> None:
        if self.page_size < 1 or self.dense_layers < 0 or self.budget < 3 * self.page_size:
            raise EngineError(
                "quest: page_size must be >= 1, dense_layers >= 0 and budget at least 3 pages, not "
                f"{self.page_size}, {self.dense_layers} and {self.budget}"
            )
        if self.prefill and not 1 <= self.q_block <= self.budget - 2 * self.page_size:
            raise EngineError(
                f"quest: q_block must lie in [1, budget - 2 pages] in prefill, not {self.q_block} of {self.budget}"
            )

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.layer < self.dense_layers or (step.queries > 1 and not self.prefill):
            return None
        if step.queries > 1:
            return self._prefill(step, memory)
        pages = step.first // self.page_size
        units = Units.pages(step.first, self.page_size, step.device)
        count = min(pages, self.budget // self.page_size - 1)
        votes = self._votes(step.grouped, page_extremes(step, memory, self.page_size, pages), step.scaling)
        index = votes.topk(count, dim=-1).indices.sort(dim=-1).values if count < pages else _all(pages, votes)
        return Kept(units, (0, 1), (pages * self.page_size,), index=index)

    def _prefill(self, step: Step, memory: Memory) -> Kept:
        rows = step.row_blocks(self.q_block)
        firsts = [int(step.places[start]) for start in rows[:-1]]
        local = tuple(first // self.page_size * self.page_size for first in firsts)
        pages = local[-1] // self.page_size
        means = torch.stack([step.grouped[:, :, :, a:b].mean(3) for a, b in pairwise(rows)], dim=3)
        before = torch.tensor(local, device=step.device)[:, None] // self.page_size
        later = torch.arange(pages, device=step.device) >= before
        votes = self._votes(means, page_extremes(step, memory, self.page_size, pages), step.scaling, later)
        own = torch.tensor([int(step.places[b - 1]) + 1 - at for b, at in zip(rows[1:], local, strict=True)])
        left = (self.budget - own).to(step.device)[:, None]
        size = torch.tensor(self.page_size, device=step.device)
        mask = fill(votes.masked_fill(later, -torch.inf), size, left)
        return Kept(Units.pages(local[-1], self.page_size, step.device), rows, local, mask)

    @staticmethod
    def _votes(query: Tensor, extremes: Tensor, scaling: float, later: Tensor | None = None) -> Tensor:
        """(batch, kv heads, blocks, pages). `query` (batch, kv heads, group, blocks, d)."""
        bounds = upper_bound(query.flatten(2, 3), extremes).float().reshape(*query.shape[:4], -1) * scaling
        if later is not None:
            bounds = bounds.masked_fill(later, torch.finfo(bounds.dtype).min)
        votes: Tensor = bounds.softmax(-1).sum(2)
        return votes


def _all(pages: int, like: Tensor) -> Tensor:
    return torch.arange(pages, device=like.device).expand(1, 1, 1, -1)
