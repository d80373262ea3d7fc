"""CompactAttention, arXiv 2605.16839: what the blocks of rows in one chunk of a prefill choose is united, so that the
whole chunk reads one list of slots, as one dense block.

Deviations: chunks are those of the sequence, `q_block` slots each, whatever the passes; what other query heads of a kv
head choose is united by the selection inside, which answers for kv heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._around import Around
from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention.quest import Quest
from rag.engine.errors import EngineError

__all__ = ["Compact"]


@dataclass(frozen=True, kw_only=True)
class Compact(Around):
    """`inner` chooses; the rows of a chunk of `q_block` slots read what any of them does, and all of their chunk. More
    is read than `inner` asks for: compare the densities. Decoding is that of `inner`."""

    name: ClassVar[str] = "compact"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    inner: Selection = field(default_factory=lambda: Quest(prefill=True))
    q_block: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = int(getattr(self.inner, "q_block", 1))
        if self.q_block < 1 or self.q_block % inside:
            raise EngineError(f"compact: q_block must be a multiple of that of inner, {inside}, not {self.q_block}")

    @property
    def label(self) -> str:
        return f"{self.name}({self.inner.label}, {self.q_block})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        kept = self.inner.select(step, memory)
        if kept is None or step.queries == 1:
            return kept
        rows = step.row_blocks(self.q_block)
        local, masks = [], []
        for start, stop in pairwise(rows):
            inside = [at for at, (a, b) in enumerate(pairwise(kept.rows)) if a < stop and b > start]
            local.append(min(int(step.places[start]), *(kept.local[at] for at in inside)))
            masks.append(_united(kept.keep[:, :, inside[0] : inside[-1] + 1]))
        return Kept(kept.units, rows, tuple(local), mask=torch.stack(masks, dim=2), bias=kept.bias)


def _united(keep: Tensor) -> Tensor:
    return keep.any(2)
