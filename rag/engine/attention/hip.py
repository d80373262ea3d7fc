"""HiP and InfiniteHiP, arXiv 2406.09827 and 2502.08910: a block of queries searches its keys like a tree. In every
stage a chunk of slots is halved again and again, always into the half whose first key scores higher; the key at the end
stands for the chunk, the best chunks stay, and the next stage cuts them into smaller ones.

Deviations: written from the rule alone; keys keep the positions of the text; all query heads of a kv head search
together, by their largest score, and every `q_stride`-th row of a block asks.
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

__all__ = ["Hip"]


@dataclass(frozen=True, kw_only=True)
class Hip(Selection):
    """The first `sink` slots, the last `window`, and between them what is left after stages with chunks of
    `chunk_sizes` slots, which keep `keeps` slots: the last of `keeps` is what a row reads. A choice of a single token
    is used for `refresh` tokens, which also read all behind it."""

    name: ClassVar[str] = "hip"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    sink: int = 256
    window: int = 1024
    chunk_sizes: tuple[int, ...] = (64, 16, 4)
    keeps: tuple[int, ...] = (32768, 8192, 2048)
    q_block: int = 64
    q_stride: int = 4
    refresh: int = 8

    def __post_init__(self) -> None:
        sizes = self.chunk_sizes
        falling = all(a % b == 0 for a, b in pairwise(sizes))
        if not sizes or len(sizes) != len(self.keeps) or not falling or any(one & (one - 1) for one in sizes):
            raise EngineError(
                f"hip: chunk_sizes are powers of two, none larger than the one before, and as many as keeps: {sizes} "
                f"and {self.keeps} are not"
            )
        if any(keep < size for keep, size in zip(self.keeps, sizes, strict=True)) or self.sink % sizes[0]:
            raise EngineError("hip: each of keeps must hold a chunk, and sink be a multiple of the first chunk size")
        if min(self.window, self.q_block, self.q_stride, self.refresh) < 1:
            raise EngineError("hip: window, q_block, q_stride and refresh must be >= 1")

    @property
    def label(self) -> str:
        return f"{self.name}({self.sink + self.keeps[-1] + self.window})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        last: _Choice | None = memory.held.get("choice")
        if step.queries == 1 and last is not None and last.kept is not None and step.first < last.place + self.refresh:
            return last.kept
        blocks = Blocks.of(step, self.q_block, window=self.window, size=self.chunk_sizes[0])
        page = self.chunk_sizes[-1]
        pages = blocks.stop // page
        mask = torch.zeros(step.batch, step.kv_heads, len(blocks.local), pages, dtype=torch.bool, device=step.device)
        mask[..., : self.sink // page] = True
        for at, local in enumerate(blocks.local):
            query = step.grouped[:, :, :, blocks.rows[at] : blocks.rows[at + 1] : self.q_stride].flatten(2, 3)
            mask[:, :, at].scatter_(-1, self._search(query, step.key, local) // page, True)
        kept = Kept(Units.pages(blocks.stop, page, step.device), blocks.rows, blocks.local, mask)
        if step.queries == 1:
            memory.held["choice"] = _Choice(kept, step.first)
        return kept

    def _search(self, query: Tensor, key: Tensor, local: int) -> Tensor:
        """(batch, kv heads, kept): the first slots of the smallest chunks that stay, of those before `local`."""
        starts = torch.arange(self.sink, max(self.sink, local), self.chunk_sizes[0], device=key.device)
        starts = starts.expand(*key.shape[:2], -1)
        before = self.chunk_sizes[0]
        for size, keep in zip(self.chunk_sizes, self.keeps, strict=True):
            starts = (starts[..., None] + torch.arange(0, before, size, device=key.device)).flatten(-2)
            before = size
            if starts.shape[-1] > keep // size:
                best = _descend(query, key, starts, size).topk(keep // size, dim=-1).indices
                starts = starts.gather(-1, best)
        return starts


def _descend(query: Tensor, key: Tensor, starts: Tensor, size: int) -> Tensor:
    """(batch, kv heads, chunks): the score of the key at which halving each chunk ends."""
    score = _score(query, key, starts)
    while size > 1:
        size //= 2
        right = starts + size
        other = _score(query, key, right)
        starts = torch.where(other > score, right, starts)
        score = torch.maximum(score, other)
    return score


def _score(query: Tensor, key: Tensor, slots: Tensor) -> Tensor:
    """The largest product of a query (batch, kv heads, rows, d) with the key of each slot (batch, kv heads, slots)."""
    keys = key.gather(2, slots[..., None].expand(*slots.shape, key.shape[-1]))
    return (query @ keys.transpose(-1, -2)).amax(2)


@dataclass(eq=False, slots=True)
class _Choice:
    """Made by the query at `place`."""

    kept: Kept | None
    place: int

    def rewind(self, slots: int) -> None:
        if slots <= self.place:
            self.kept = None
