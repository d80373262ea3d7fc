"""The seam: what a selection is asked with, what it answers, and what it may remember. Executors run the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Kept", "Memory", "Selection", "Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """One layer's attention in one pass, over sequences of one length without padding.

    `query` (batch, heads, queries, d); `key` and `value` (batch, kv heads, slots, d), rotated, with the new tokens in
    them. Query head h reads kv head h // group. `places` (queries), on the CPU: the slot of each query, ascending.
    `units` are the chunks of the prompt, if any were named. `module` is the layer's own, for trained selections.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    places: Tensor
    scaling: float
    units: Units | None = None
    module: Any = None

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def queries(self) -> int:
        return self.query.shape[2]

    @property
    def kv_heads(self) -> int:
        return self.key.shape[1]

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    @property
    def slots(self) -> int:
        return self.key.shape[2]

    @cached_property
    def first(self) -> int:
        return int(self.places[0])

    @cached_property
    def causal_pairs(self) -> int:
        """How many pairs of a query and a slot dense attention would read, in one sequence and head."""
        return self.first + 1 if self.queries == 1 else int(self.places.sum()) + self.queries

    @cached_property
    def contiguous(self) -> bool:
        """Whether the queries are the last of the slots, as everywhere but in a sparse pass of chunk reuse."""
        return self.first == self.slots - self.queries

    @property
    def device(self) -> torch.device:
        return self.query.device

    @cached_property
    def grouped(self) -> Tensor:
        """The queries by kv head: (batch, kv heads, group, queries, d)."""
        return self.query.reshape(self.batch, self.kv_heads, self.group, self.queries, -1)

    def biased(self, bias: Tensor) -> Step:
        """The same with `bias` (batch, kv heads, slots) in every score: one more dimension of the keys, which every
        query has as 1."""
        more = (bias / self.scaling).expand(self.batch, self.kv_heads, -1)[..., None].to(self.key.dtype)
        query = torch.cat((self.query, torch.ones_like(self.query[..., :1])), dim=-1)
        return replace(self, query=query, key=torch.cat((self.key, more), dim=-1))

    def row_blocks(self, size: int | None, cuts: Sequence[int] = ()) -> tuple[int, ...]:
        """Bounds of blocks of rows (queries): a block ends where a multiple of `size` slots, or a slot in `cuts`
        (ascending), begins. So that they do not depend on where a pass started, except for its first."""
        cut = torch.zeros(self.queries - 1, dtype=torch.bool)
        marks = [self.places // size] if size is not None else []
        if cuts:
            marks.append(torch.searchsorted(torch.tensor(cuts), self.places, right=True))
        for mark in marks:
            cut |= mark.diff() != 0
        return (0, *(cut.nonzero()[:, 0] + 1).tolist(), self.queries)


@dataclass(frozen=True, eq=False)
class Kept:
    """What is read. Row block i is the queries [rows[i], rows[i + 1]). Each of its rows reads, of the slots before
    `local[i]`, the open ones and those in kept units; and from `local[i]` on every slot up to its own.

    `local[i]` is at most the slot of the block's first row, so that nothing later is ever read, and every row reads
    itself. What is kept is said in one of two ways, each with a batch and a head dimension of 1 if all are alike:
    `mask` (batch, kv heads, row blocks, units), or `index` (batch, kv heads, row blocks, kept), units in ascending
    order, the same number for all. Units that begin at `local[i]` or later need not be named. `bias` (batch, kv heads,
    slots) is added to the scores of the slots, whoever reads them.
    """

    units: Units
    rows: tuple[int, ...]
    local: tuple[int, ...]
    mask: Tensor | None = None
    index: Tensor | None = None
    bias: Tensor | None = None

    @cached_property
    def keep(self) -> Tensor:
        """`mask`, whichever way it was given."""
        if self.mask is not None:
            return self.mask
        if self.index is None:
            raise EngineError("a selection says what it keeps by a mask or by an index, not by neither")
        shape = (*self.index.shape[:-1], len(self.units))
        return torch.zeros(shape, dtype=torch.bool, device=self.index.device).scatter_(-1, self.index, True)

    @cached_property
    def opened(self) -> Tensor:
        """`keep` with one more unit for the open slots."""
        keep = self.keep
        return torch.cat((keep, keep.new_ones(*keep.shape[:-1], 1)), dim=-1)

    @cached_property
    def _unit_of(self) -> Tensor:
        return self.units.of_slots(max(self.local))

    def past(self, block: int, slots: int | None = None) -> Tensor:
        """(batch, kv heads, local[block]): whether the block reads each of the slots before its local ones. With
        `slots`, as many, of which the others are False."""
        length = self.local[block]
        read = self.opened[:, :, block].index_select(-1, self._unit_of[:length])
        return read if slots is None else pad(read, (0, slots - length))

    @cached_property
    def edges(self) -> Tensor:
        """`local`, where the choice is."""
        return torch.tensor(self.local, device=self.keep.device)

    @cached_property
    def _kept_before(self) -> tuple[Tensor, Tensor]:
        """Slots in kept units before each unit (batch, kv heads, row blocks, units + 1), and in any (units + 1)."""
        lengths = self.units.lengths.int()
        kept = (self.keep * lengths).cumsum(-1, dtype=torch.int32)
        return pad(kept, (1, 0)), pad(lengths.cumsum(-1, dtype=torch.int32), (1, 0))

    def reads_before(self, marks: Tensor) -> Tensor:
        """How many slots before each mark are open or in a kept unit: (batch, kv heads, row blocks, marks) for marks
        (row blocks, marks), slots in any order. int32."""
        units, shape = self.units, (*self.keep.shape[:2], *marks.shape)
        if not len(units):
            return marks.int().expand(shape)
        kept, held = self._kept_before
        unit = torch.searchsorted(units.starts, marks, right=True) - 1
        at = unit.clamp(min=0)
        inside = torch.where(unit < 0, 0, (marks - units.starts[at]).minimum(units.lengths[at])).int()
        of_block = at.expand(shape)
        own = kept.gather(-1, of_block) + self.keep.gather(-1, of_block) * inside
        return own + (marks.int() - held[at] - inside)

    def pairs(self, step: Step) -> Tensor | int:
        """How many pairs of a query and a slot are read: summed over batch and kv heads."""
        if step.queries == 1:
            return self.read_slots(step)
        sizes, local = torch.tensor(self.rows).diff(), torch.tensor(self.local)
        near = int(step.places.sum()) - int((sizes * (local - 1)).sum())
        return self._far(step, sizes) + near * step.batch * step.kv_heads

    def _far(self, step: Step, weights: Tensor) -> Tensor | int:
        """Slots that a row of each block reads before its local ones, times `weights` (row blocks), on the CPU: summed
        over batch, kv heads and blocks."""
        size = self.units.size
        if self.index is not None and size is not None and size * len(self.units) <= min(self.local):
            skipped = (len(self.units) - self.index.shape[-1]) * size
            rows = int((weights * (torch.tensor(self.local) - skipped)).sum())
            return rows * step.batch * step.kv_heads
        far = self.reads_before(self.edges[:, None])[..., 0]
        return (far.long() * weights.to(far.device)).expand(step.batch, step.kv_heads, -1).sum()

    def read_slots(self, step: Step) -> Tensor | int:
        """Slots of which at least one row reads the key and value, summed over batch and kv heads."""
        if len(self.local) == 1:
            last = step.first if step.queries == 1 else int(step.places[-1])
            near = last + 1 - self.local[0]
            return self._far(step, torch.ones(1, dtype=torch.long)) + near * step.batch * step.kv_heads
        reach = torch.where(self.opened, self.edges[:, None], 0).amax(2)  # a unit is read up to the furthest local
        slots = torch.arange(step.slots, device=reach.device)
        far = slots < reach.index_select(-1, self.units.of_slots(step.slots))
        one, ends_at = torch.ones(len(self.local), dtype=torch.int32), step.places[torch.tensor(self.rows[1:]) - 1] + 1
        begins, ends = (
            torch.zeros(step.slots + 1, dtype=torch.int32).index_add_(0, at, one)
            for at in (torch.tensor(self.local), ends_at)
        )
        near_slots = ((begins - ends).cumsum(0) > 0)[:-1].to(far.device)
        return (far | near_slots).expand(step.batch, step.kv_heads, -1).sum()


@dataclass(eq=False, slots=True)
class Memory:
    """What a selection remembers of one layer of one sequence, or batch, from pass to pass.

    `held` is the selection's own, made when there were `valid` slots. Where a pass begins before that, the keys from
    there on are others now: what is held is told so if it has a method `rewind(slots)`, and forgotten if not. `across`
    is the same for all layers, for selections that share one answer.
    """

    held: dict[str, Any] = field(default_factory=dict)
    across: dict[str, Any] = field(default_factory=dict)
    valid: int = 0

    def begin(self, first: int) -> None:
        """A pass starts whose first query stands at slot `first`."""
        if first < self.valid:
            self.held = {name: one for name, one in self.held.items() if hasattr(one, "rewind")}
            for one in self.held.values():
                one.rewind(first)
            self.valid = first


@dataclass(frozen=True, kw_only=True)
class Selection(ABC):
    """Which units each block of queries reads. A subclass is one file, named like it, and holds only parameters: what
    it remembers goes to `memory`.

    `foresight` says how far the choice of a row looks ahead (what is *read* never does): "none", the choice of a row
    depends on no later row; "block", on rows of its own block, whose queries are pooled; "pass", on all of the pass.
    """

    name: ClassVar[str]
    foresight: ClassVar[Literal["none", "block", "pass"]] = "none"

    @abstractmethod
    def select(self, step: Step, memory: Memory) -> Kept | None:
        """None: this pass is dense in this layer."""

    @property
    def label(self) -> str:
        """The name and the parameters that say how much is kept, for statistics."""
        budget = getattr(self, "budget", None)
        return self.name if budget is None else f"{self.name}({budget})"
