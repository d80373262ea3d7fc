"""Chunks of the prompt as blocks: a chunk reads itself, what stands before all chunks, and an anchor; the question and
the answer read every chunk, or those that score best with the retriever's scores as a prior.

As in Star Attention (arXiv 2411.17116) and Block-Attention (arXiv 2409.15355), whose last block reads all; the choice
for the answer is ours: unit score = z(log attention mass, or another score) + weight * z(prior).
Deviations: the anchor is read where it stands, not copied in front of every chunk.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._choose import fill, products, standardised, unit_extremes, upper_bound
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["ChunkBlock"]


@dataclass(frozen=True, kw_only=True)
class ChunkBlock(Selection):
    """`anchor`: units that begin in the first so many slots of the prompt are read by all. What is not in a chunk is
    read by all behind it. Chunks longer than `longer_than` slots are cut in units of `split`.

    The rows behind the last chunk read of the chunks' slots the share `density`: the anchor and the `floor` chunks with
    the highest priors in any case, then the best units. With `question_dense` that is so only for single tokens, which
    are the answer's: the question reads all. The choice of the question is used for `refresh` tokens of the answer,
    then each of its choices as long. `score` is the attention that the rows give to a unit ("mass"), the bound of
    Quest on it, or that to the mean key of a unit. All heads of a layer read the same.
    """

    name: ClassVar[str] = "chunk-block"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    density: float = 1.0
    anchor: int = 512
    floor: int = 3
    prior_weight: float = 1.0
    score: Literal["mass", "bound", "mean"] = "mass"
    question_dense: bool = True
    refresh: int = 16
    split: int = 64
    longer_than: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.score not in ("mass", "bound", "mean"):
            raise EngineError(
                "chunk-block: density must lie in (0, 1] and score be mass, bound or mean, not "
                f"{self.density} and {self.score!r}"
            )
        low = min(self.anchor, self.floor, self.prior_weight, self.refresh - 1, self.split - 1)
        if low < 0 or self.longer_than < self.split:
            raise EngineError(
                "chunk-block: anchor, floor and prior_weight must be >= 0, refresh and split >= 1, longer_than >= split"
            )

    @property
    def label(self) -> str:
        return f"{self.name}({self.density:g})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.units is None or not len(step.units):
            return None
        layout: _Layout | None = memory.across.get("chunk-block")
        if layout is None or layout.given is not step.units:
            layout = memory.across["chunk-block"] = _Layout.of(step.units, self)
        rows = step.row_blocks(None, layout.cuts)
        local = [layout.begin(int(step.places[start])) for start in rows[:-1]]
        mask = layout.anchors.expand(1, 1, len(local), -1)
        if local[-1] == layout.stop and self.density < 1:
            chosen = self._chosen(step, memory, layout, rows[-2])
            dense = self.question_dense and step.queries > 1
            if not dense:
                mask = torch.cat((mask[:, :, :-1].expand(len(chosen), -1, -1, -1), chosen), dim=2)
        else:
            dense = True
        if local[-1] == layout.stop and dense:
            local[-1] = 0  # from slot 0 on
        return Kept(layout.units, rows, tuple(local), mask)

    def _chosen(self, step: Step, memory: Memory, layout: _Layout, start: int) -> Tensor:
        """(batch, 1, 1, units): what the rows from `start` on read, all of which are behind the last chunk."""
        last: _Choice | None = memory.held.get("choice")
        place = int(step.places[start])
        if step.queries == 1 and last is not None and last.mask is not None and place < last.slots + self.refresh:
            return last.mask
        scores = standardised(self._scores(step, layout, start))
        priors = layout.units.own_priors()
        if priors is not None:
            scores = scores + self.prior_weight * standardised(priors)
        total = int(layout.units.lengths.sum())
        mask = fill(scores, layout.units.lengths, int(self.density * total), layout.always.expand_as(scores))
        mask = mask[:, None, None]
        memory.held["choice"] = _Choice(mask, int(step.places[-1]) + 1)
        return mask

    def _scores(self, step: Step, layout: _Layout, start: int) -> Tensor:
        """(batch, units): the log of the attention that the rows give to each unit, or what stands for it."""
        units, query = layout.units, step.grouped[:, :, :, start:]
        key = step.key[:, :, : layout.stop]
        if self.score == "mass":
            logits = products(query.flatten(2, 3), key).float() * step.scaling
            given = logits.softmax(-1).sum((1, 2))
            of_slots = units.of_slots(layout.stop)
            mass = given.new_zeros(len(given), len(units) + 1).index_add_(1, of_slots, given)[:, :-1]
            return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
        mean = query.mean(3)
        if self.score == "bound":
            logits = upper_bound(mean, unit_extremes(key, units)).float() * step.scaling
        else:
            of_slots = units.of_slots(layout.stop)
            sums = key.new_zeros(*key.shape[:2], len(units) + 1, key.shape[3], dtype=torch.float32)
            means = sums.index_add_(2, of_slots, key.float())[:, :, :-1] / units.lengths[:, None]
            logits = mean.float() @ means.transpose(-1, -2) * step.scaling + units.lengths.log()
        return logits.log_softmax(-1).logsumexp((1, 2))


@dataclass(frozen=True, eq=False, slots=True)
class _Layout:
    """What follows from the chunks alone. `cuts` are the slots where a chunk or a gap begins, `stop` the last."""

    given: Units
    units: Units
    cuts: tuple[int, ...]
    stop: int
    anchors: Tensor
    always: Tensor

    @classmethod
    def of(cls, given: Units, how: ChunkBlock) -> _Layout:
        units = given.split(how.split, longer_than=how.longer_than)
        cuts = sorted({*given.starts.tolist(), *given.stops.tolist()})
        anchors = units.starts < how.anchor
        always = anchors
        if given.priors is not None and how.floor:
            best = given.priors.argsort(descending=True, stable=True)[: how.floor]
            always = always | torch.isin(units.parents, best)
        return cls(given, units, tuple(cuts), given.stop, anchors, always)

    def begin(self, place: int) -> int:
        """Where the chunk or gap of a slot begins."""
        at = bisect_right(self.cuts, place)
        return self.cuts[at - 1] if at else 0


@dataclass(eq=False, slots=True)
class _Choice:
    """Made when there were `slots` slots."""

    mask: Tensor | None
    slots: int

    def rewind(self, slots: int) -> None:
        if slots < self.slots:
            self.mask = None
