"""MAC-Attention, arXiv 2604.00235: a query that is like an earlier one takes over what that one found (match), the
slots around that point are read again (amend), and those since then are read in full (complete).

Deviations: what is taken over is the choice of a wrapped selection, not a result of attention, so nothing is
approximated beyond it; queries are compared rotated, as the cache's layer sees them, by their distance over their
length, and the least alike head of the batch decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rag.engine.attention._around import Around
from rag.engine.attention._base import Kept, Memory, Step
from rag.engine.errors import EngineError

__all__ = ["Mac"]


@dataclass(frozen=True, kw_only=True)
class Mac(Around):
    """In decoding, the choices of `inner` for the last `capacity` queries that had to choose are held. The nearest of
    them is taken over where its distance is below `threshold`; 0 never does. `amend` slots before its place are read in
    full, and all since."""

    name: ClassVar[str] = "mac"
    threshold: float = 0.45
    capacity: int = 512
    amend: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold < 0 or self.capacity < 1 or self.amend < 0:
            raise EngineError(
                "mac: threshold must be >= 0, capacity >= 1 and amend >= 0, not "
                f"{self.threshold}, {self.capacity} and {self.amend}"
            )

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.queries > 1:
            return self.inner.select(step, memory)
        held: _Ring = memory.held.setdefault("mac", _Ring())
        query = step.query[:, :, 0].detach().float()
        match = held.nearest(query, self.threshold)
        if match is not None:
            local = max(0, min(match.kept.local[0], match.place + 1 - self.amend))
            return Kept(match.kept.units, (0, 1), (local,), match.kept.mask, match.kept.index)
        kept = self.inner.select(step, memory)
        if kept is not None and kept.bias is None:
            held.matches = [*held.matches, _Match(query, kept, step.first)][-self.capacity :]
        return kept


@dataclass(frozen=True, eq=False, slots=True)
class _Match:
    """What the query (batch, heads, d) at `place` chose."""

    query: Tensor
    kept: Kept
    place: int


@dataclass(eq=False, slots=True)
class _Ring:
    """The oldest first."""

    matches: list[_Match] = field(default_factory=list)

    def nearest(self, query: Tensor, threshold: float) -> _Match | None:
        """The nearest below `threshold`; of equals the latest."""
        if not self.matches or not threshold:
            return None
        others = torch.stack([one.query for one in reversed(self.matches)])
        away = (others - query).norm(dim=-1) / query.norm(dim=-1).clamp(min=torch.finfo(query.dtype).tiny)
        least, at = away.flatten(1).amax(-1).min(0)
        return self.matches[-1 - int(at)] if float(least) < threshold else None

    def rewind(self, slots: int) -> None:
        self.matches = [one for one in self.matches if one.place < slots]
