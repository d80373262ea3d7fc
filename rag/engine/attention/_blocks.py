"""Blocks of rows that choose together, and where the slots begin that each reads in any case."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rag.engine.attention._base import Step

__all__ = ["Blocks"]


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """Block i is the rows [rows[i], rows[i + 1]), chooses among the slots before `local[i]`, and its last row reads
    `own[i]` slots from there on."""

    rows: tuple[int, ...]
    local: tuple[int, ...]
    own: tuple[int, ...]

    @classmethod
    def of(cls, step: Step, q_block: int, *, window: int = 1, size: int = 1, back: int = 0) -> Blocks:
        """`local` leaves the last row `window` slots at least and the first row itself; it is a multiple of `size`,
        `back` (so many slots) before the last possible one."""
        rows = step.row_blocks(q_block)
        ends = [(int(step.places[start]), int(step.places[stop - 1])) for start, stop in pairwise(rows)]
        local = tuple(max(0, min(first, last + 1 - window) // size * size - back) for first, last in ends)
        own = tuple(last + 1 - at for (_, last), at in zip(ends, local, strict=True))
        return cls(rows, local, own)

    @property
    def stop(self) -> int:
        """The last of the `local`: no block chooses among slots from there on."""
        return max(self.local)

    def later(self, starts: Tensor) -> Tensor:
        """(blocks, units): which units, by where they start, a block may not choose."""
        return starts >= torch.tensor(self.local, device=starts.device)[:, None]

    def left(self, budget: int, device: torch.device) -> Tensor:
        """(blocks, 1): what is left of `budget` slots for the choice."""
        return (budget - torch.tensor(self.own, device=device))[:, None]

    def means(self, step: Step) -> Tensor:
        """(batch, kv heads, group, blocks, d): the mean query of each block."""
        return torch.stack([step.grouped[:, :, :, a:b].mean(3) for a, b in pairwise(self.rows)], dim=3)
