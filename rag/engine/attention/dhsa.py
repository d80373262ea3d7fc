"""Dynamic Hierarchical Sparse Attention, arXiv 2510.24606: chunks of variable length, each with one pooled key that is
normalised by its length; a block of queries scores chunks, every token has the score of its chunk, and the best tokens
are read.

Deviations: the borders are those of the prompt's chunks, not a predictor's, and every `block_size` slots elsewhere;
the first `sink` slots are always read; a chunk is pooled up to where the block's local slots begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Dhsa"]


@dataclass(frozen=True, kw_only=True)
class Dhsa(Selection):
    """`budget_prefill` slots a row, and `budget_decode` for single tokens, where -1 is dense: the first `sink`, the
    last `local_tokens` and those of the best chunks, of which the last is cut. A pooled key is the sum of the keys over
    the square root of their number ("sqrt"), or over their number ("mean"). All heads read the same."""

    name: ClassVar[str] = "dhsa"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    budget_prefill: int = 2048
    budget_decode: int = -1
    block_size: int = 64
    local_tokens: int = 64
    pooling: Literal["sqrt", "mean"] = "sqrt"
    sink: int = 4
    q_block: int = 256

    def __post_init__(self) -> None:
        if min(self.block_size, self.local_tokens, self.q_block) < 1 or self.sink < 0:
            raise EngineError("dhsa: block_size, local_tokens and q_block must be >= 1, sink >= 0")
        least = self.sink + max(self.local_tokens, self.q_block)
        if self.budget_prefill < least or (self.budget_decode < least and self.budget_decode != -1):
            raise EngineError(
                f"dhsa: the budgets must hold sink and the larger of local_tokens and q_block, {least} slots, or be -1 "
                f"in decoding, not {self.budget_prefill} and {self.budget_decode}"
            )
        if self.pooling not in ("sqrt", "mean"):
            raise EngineError(f"dhsa: pooling must be sqrt or mean, not {self.pooling!r}")

    @property
    def budget(self) -> int:
        return self.budget_prefill

    def select(self, step: Step, memory: Memory) -> Kept | None:
        budget = self.budget_prefill if step.queries > 1 else self.budget_decode
        if budget == -1:
            return None
        blocks = Blocks.of(step, self.q_block, window=self.local_tokens)
        stop = blocks.stop
        starts = self._starts(step, stop)
        slots = torch.arange(stop, device=step.device)
        chunk = torch.searchsorted(starts, slots, right=True) - 1
        mask = slots - starts[chunk] < self._taken(step, blocks, starts, budget)[..., chunk]
        return Kept(Units.pages(stop, 1, step.device), blocks.rows, blocks.local, mask[:, None])

    def _starts(self, step: Step, stop: int) -> Tensor:
        """Where the chunks among the first `stop` slots begin; the last ends there."""
        edges: set[int] = {0, self.sink}
        chunks: dict[int, int] = {}
        if step.units is not None:
            chunks = dict(zip(step.units.starts.tolist(), step.units.stops.tolist(), strict=True))
            edges |= {*chunks.keys(), *chunks.values()}
        whole = {*chunks}
        if any(start < self.sink < end for start, end in chunks.items()):
            whole.add(self.sink)
        bounds = [*sorted(edge for edge in edges if edge < stop), stop]
        starts = [one for a, b in pairwise(bounds) for one in ([a] if a in whole else range(a, b, self.block_size))]
        return torch.tensor(starts, dtype=torch.long, device=step.device)

    def _taken(self, step: Step, blocks: Blocks, starts: Tensor, budget: int) -> Tensor:
        """(batch, blocks, chunks): how many slots are read of each chunk."""
        local = torch.tensor(blocks.local, device=step.device)[:, None]
        stops = torch.cat((starts[1:], starts.new_tensor([blocks.stop])[: len(starts)]))
        lengths = (torch.minimum(stops, local) - starts).clamp(min=0)
        scores = self._scores(step, blocks, starts, stops).masked_fill(starts < self.sink, torch.inf)
        order = scores.masked_fill(lengths == 0, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        ordered = lengths.expand_as(scores).gather(-1, order)
        room = blocks.left(budget, step.device) - (ordered.cumsum(-1) - ordered)
        return torch.zeros_like(order).scatter_(-1, order, torch.minimum(room.clamp(min=0), ordered))

    def _scores(self, step: Step, blocks: Blocks, starts: Tensor, stops: Tensor) -> Tensor:
        """(batch, blocks, chunks). The chunk in which a block's local slots begin is pooled up to there."""
        keys = step.key[:, :, : blocks.stop].detach().float().mean(1)
        sums = torch.cat((torch.zeros_like(keys[:, :1]), keys.cumsum(1)), dim=1) if blocks.stop else keys
        query = blocks.means(step).float().mean((1, 2))  # its own length changes no order
        if not len(starts):
            return query.new_zeros(*query.shape[:2], 0)
        pooled = (sums[:, stops] - sums[:, starts]) / self._norm(stops - starts)
        scores = query @ pooled.transpose(-1, -2)
        local = torch.tensor(blocks.local, device=step.device)
        cut = torch.searchsorted(starts, local, right=True) - 1
        part = (sums[:, local] - sums[:, starts[cut]]) / self._norm((local - starts[cut]).clamp(min=1))
        return scores.scatter(-1, cut[:, None].expand(len(scores), -1, -1), (query * part).sum(-1, keepdim=True))

    def _norm(self, lengths: Tensor) -> Tensor:
        """(lengths, 1)"""
        return (lengths.sqrt() if self.pooling == "sqrt" else lengths)[:, None]
