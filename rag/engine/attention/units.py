"""The blocks that a selection keeps or skips: pages of one size, or the spans of the prompt's chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rag.engine.errors import EngineError

__all__ = ["Units"]


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Unit u is the slots [starts[u], stops[u]); units ascend and do not meet. Slots are counted from the first token
    of the sequence, padding left out. Slots in no unit are open: whoever comes after them reads them.

    `ids` and `priors` are of the spans that were given; `parents` (units) tells which span each unit is a part of.
    Priors are float32, larger is better, such as bubble scores. `size` is set where all units are pages from slot 0 on.
    """

    starts: Tensor
    stops: Tensor
    parents: Tensor
    ids: tuple[str, ...] = ()
    priors: Tensor | None = None
    size: int | None = None

    def __len__(self) -> int:
        return self.starts.shape[0]

    @classmethod
    def pages(cls, slots: int, size: int, device: torch.device | None = None) -> Units:
        """The full pages of `size` slots among the first `slots`."""
        if size < 1:
            raise EngineError(f"a page has at least one slot, not {size}")
        numbers = torch.arange(slots // size, device=device)
        starts = numbers * size
        return cls(starts, starts + size, numbers, size=size)

    @classmethod
    def of_spans(
        cls, spans: Sequence[tuple[int, int]], *, ids: Sequence[str] = (), priors: Sequence[float] = ()
    ) -> Units:
        """One unit for each span (start, stop) of slots, such as a chunk of the prompt."""
        if any(not 0 <= start < stop for start, stop in spans) or any(a[1] > b[0] for a, b in pairwise(spans)):
            raise EngineError(f"spans ascend, hold a slot at least and do not meet: {list(spans)} do not")
        for what, given in (("ids", ids), ("priors", priors)):
            if given and len(given) != len(spans):
                raise EngineError(f"{len(spans)} spans have as many {what} or none, not {len(given)}")
        starts, stops = (torch.tensor([span[at] for span in spans], dtype=torch.long) for at in (0, 1))
        scores = torch.tensor(list(priors), dtype=torch.float32) if priors else None
        return cls(starts, stops, torch.arange(len(spans)), tuple(ids), scores)

    @property
    def lengths(self) -> Tensor:
        return self.stops - self.starts

    @property
    def stop(self) -> int:
        """The slot after the last unit; 0 without one."""
        return int(self.stops[-1]) if len(self) else 0

    def split(self, size: int = 64, *, longer_than: int = 256) -> Units:
        """Units longer than `longer_than` slots are cut in units of `size`, of which the last may be shorter."""
        if not 1 <= size <= longer_than:
            raise EngineError(f"size must lie in [1, longer_than], not {size} of {longer_than}")
        parts = torch.where(self.lengths > longer_than, -(-self.lengths // size), 1)
        number = torch.arange(len(self), device=parts.device).repeat_interleave(parts)
        first = parts.cumsum(0) - parts
        place = torch.arange(number.shape[0], device=parts.device) - first[number]
        starts = self.starts[number] + place * size
        last = place == parts[number] - 1
        stops = torch.where(last, self.stops[number], starts + size)
        return Units(starts, stops, self.parents[number], self.ids, self.priors)

    def upto(self, slots: int) -> Units:
        """Those that are whole among the first `slots`."""
        count = int((self.stops <= slots).sum())
        if count == len(self):
            return self
        return Units(
            self.starts[:count], self.stops[:count], self.parents[:count], self.ids, self.priors, self.size
        )  # fmt: skip

    def of_slots(self, slots: int) -> Tensor:
        """(slots): the unit of each of the first slots; `len(self)` for the open ones."""
        places = torch.arange(slots, device=self.starts.device)
        if not len(self):
            return torch.zeros_like(places)
        unit = torch.searchsorted(self.starts, places, right=True) - 1
        inside = (unit >= 0) & (places < self.stops[unit.clamp(min=0)])
        return torch.where(inside, unit, len(self))

    def own_priors(self) -> Tensor | None:
        """(units): the prior of the span that each is a part of."""
        return None if self.priors is None else self.priors[self.parents]

    def to(self, device: torch.device) -> Units:
        if self.starts.device == device:
            return self
        priors = None if self.priors is None else self.priors.to(device)
        starts, stops, parents = (one.to(device) for one in (self.starts, self.stops, self.parents))
        return Units(starts, stops, parents, self.ids, priors, self.size)
