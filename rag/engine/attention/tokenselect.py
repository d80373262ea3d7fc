"""TokenSelect, arXiv 2411.02886: every query head votes, by its softmax over the tokens between the first and the
recent ones, and all heads read the tokens with the most votes; a similar query reads what the last one read.

Deviations: in prefill the mean query of `q_block` rows chooses (the paper takes chunks of 8,192); with batches the
least similar query of the batch decides whether the choice is used again; queries keep their rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._choose import fill, products
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["TokenSelect"]


@dataclass(frozen=True, kw_only=True)
class TokenSelect(Selection):
    """The first `n_init` slots, the last `n_local`, and `top_k` between them. `threshold` is the cosine to the query
    that chose last from which on its choice is used again; more than 1 never does. Prefill may stay dense."""

    name: ClassVar[str] = "tokenselect"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    top_k: int = 2048
    n_init: int = 128
    n_local: int = 512
    threshold: float = 0.9
    prefill: bool = True
    q_block: int = 512

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.n_init < 0 or not 1 <= self.q_block <= self.n_local:
            raise EngineError(
                "tokenselect: top_k must be >= 1, n_init >= 0 and q_block in [1, n_local], not "
                f"{self.top_k}, {self.n_init} and {self.q_block} of {self.n_local}"
            )

    @property
    def budget(self) -> int:
        return self.n_init + self.top_k + self.n_local

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.queries > 1 and not self.prefill:
            return None
        rows = step.row_blocks(self.q_block) if step.queries > 1 else (0, 1)
        local = []
        for start, stop in pairwise(rows):
            first, last = int(step.places[start]), int(step.places[stop - 1])
            local.append(0 if last < self.budget else min(first, last - self.n_local + 1))
        units = Units.pages(max(local), 1, step.device)
        if not len(units):
            return Kept(
                units, rows, tuple(local), mask=torch.zeros(1, 1, len(local), 0, dtype=torch.bool, device=step.device)
            )
        if step.queries == 1:
            return Kept(units, rows, tuple(local), index=self._again(step, memory, local[0]))
        means = torch.stack([step.query[:, :, a:b].mean(2) for a, b in pairwise(rows)], dim=2)
        votes = self._votes(step, means, torch.tensor(local, device=step.device)[:, None])
        init = torch.arange(len(units), device=step.device) < self.n_init
        one = torch.ones((), dtype=torch.long, device=step.device)
        return Kept(units, rows, tuple(local), fill(votes, one, self.top_k) | init)

    def _votes(self, step: Step, query: Tensor, local: Tensor) -> Tensor:
        """(batch, 1, blocks, slots before the last local ones); -inf where nothing may be chosen. `query` (batch,
        heads, blocks, d); `local` (blocks, 1)."""
        slots = torch.arange(int(local.max()), device=step.device)
        rows = query.reshape(step.batch, step.kv_heads, -1, query.shape[-1])
        scores = products(rows, step.key[:, :, : len(slots)]).float()
        scores = scores.reshape(step.batch, step.kv_heads, step.group, -1, len(slots))
        outside = (slots < self.n_init) | (slots >= local)
        scores = scores.masked_fill(outside, torch.finfo(scores.dtype).min)
        votes: Tensor = scores.softmax(-1).sum((1, 2))[:, None]
        return votes.masked_fill(outside, -torch.inf)

    def _again(self, step: Step, memory: Memory, local: int) -> Tensor:
        """(batch, 1, 1, kept): the last choice, or a new one."""
        query = step.query.flatten(1).float()
        last: _Choice | None = memory.held.get("choice")
        if last is not None and last.index is not None and last.likeness(query) >= self.threshold:
            return last.index
        votes = self._votes(step, step.query, torch.tensor([[local]], device=step.device))
        chosen = votes.topk(self.top_k, dim=-1).indices.sort(dim=-1).values
        init = torch.arange(self.n_init, device=step.device).expand(*chosen.shape[:-1], -1)
        index = torch.cat((init, chosen), dim=-1)
        memory.held["choice"] = _Choice(query, index, local)
        return index


@dataclass(eq=False, slots=True)
class _Choice:
    """Made among the first `slots` slots."""

    query: Tensor
    index: Tensor | None
    slots: int

    def likeness(self, query: Tensor) -> float:
        """The least cosine in the batch."""
        return float(cosine_similarity(query, self.query, dim=-1).min())

    def rewind(self, slots: int) -> None:
        if slots < self.slots:
            self.index = None
