"""StreamingLLM, arXiv 2309.17453: the first tokens, on which attention rests, and the most recent ones.

Deviations: keys keep the positions of the text instead of moving together; rows of one block share where their recent
tokens begin, so that the first of them reads up to `q_block` - 1 fewer than the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["SinkRecent"]


@dataclass(frozen=True, kw_only=True)
class SinkRecent(Selection):
    """The first `sink` slots and the last `budget` - `sink`, its own among them."""

    name: ClassVar[str] = "sink-recent"
    budget: int = 1024
    sink: int = 4
    q_block: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.sink < self.budget or not 1 <= self.q_block <= self.budget - self.sink:
            raise EngineError(
                "sink-recent: sink must lie in [0, budget) and q_block in [1, budget - sink], not "
                f"{self.sink} and {self.q_block} of {self.budget}"
            )

    def select(self, step: Step, memory: Memory) -> Kept | None:
        rows = step.row_blocks(self.q_block)
        window = self.budget - self.sink
        lasts = [int(step.places[stop - 1]) for stop in rows[1:]]
        firsts = [int(step.places[start]) for start in rows[:-1]]
        local = tuple(max(0, min(first, last - window + 1)) for first, last in zip(firsts, lasts, strict=True))
        units = Units.pages(self.sink, max(1, self.sink), step.device)
        rest = Units.of_spans([(self.sink, step.slots)] if step.slots > self.sink else []).to(step.device)
        starts, stops = torch.cat((units.starts, rest.starts)), torch.cat((units.stops, rest.stops))
        kept = torch.arange(len(starts), device=step.device) < len(units)
        mask = kept.expand(1, 1, len(local), -1)
        return Kept(Units(starts, stops, torch.arange(len(starts), device=step.device)), rows, local, mask)
