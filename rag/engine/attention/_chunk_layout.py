"""What `chunk-block` knows of a prompt from its chunks alone, and what it chose for the answer."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attention.units import Units

__all__ = ["Choice", "ChunkLayout"]


@dataclass(frozen=True, eq=False, slots=True)
class ChunkLayout:
    """Chunks are read in `units` of so many slots. Those of a short chunk have one score: `scored_as` (units) leads
    to it among those of `scored`. `cuts` are the slots where a chunk or a gap begins, `stop` the last. All rows read
    the `anchors`, those of question and answer also what else is in `always`: both (units)."""

    given: Units
    units: Units
    scored: Units
    scored_as: Tensor
    cuts: tuple[int, ...]
    stop: int
    anchors: Tensor
    always: Tensor

    @classmethod
    def of(cls, given: Units, *, split: int, longer_than: int, anchor: int, floor: int) -> ChunkLayout:
        units = given.split(split, longer_than=split)
        scored = given.split(split, longer_than=max(split, longer_than))
        scored_as = torch.searchsorted(scored.starts, units.starts, right=True) - 1
        cuts = sorted({*given.starts.tolist(), *given.stops.tolist()})
        anchors = units.starts < anchor
        always = anchors
        if given.priors is not None and floor:
            best = given.priors.argsort(descending=True, stable=True)[:floor]
            always = always | torch.isin(units.parents, best)
        return cls(given, units, scored, scored_as, tuple(cuts), given.stop, anchors, always)

    def begin(self, place: int) -> int:
        """Where the chunk or gap of a slot begins."""
        at = bisect_right(self.cuts, place)
        return self.cuts[at - 1] if at else 0


@dataclass(eq=False, slots=True)
class Choice:
    """Made when there were `slots` slots."""

    mask: Tensor | None
    slots: int

    def rewind(self, slots: int) -> None:
        if slots < self.slots:
            self.mask = None
