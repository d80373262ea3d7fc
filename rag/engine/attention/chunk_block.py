"""Chunks of the prompt as blocks: a chunk reads itself, what stands before all chunks, an anchor and the best units
before it; the question reads all, and the answer the chunks with the best priors and the best units of the others.

As in Star Attention (arXiv 2411.17116) and Block-Attention (arXiv 2409.15355), whose last block reads all. Units before
a chunk are scored by the bound of Quest (arXiv 2406.10774). What is chosen for the answer is ours: chunks by
z(prior) + weight * z(log attention of the question in retrieval heads), then units by z(log attention mass, or another
score) + weight * z(prior). Retrieval heads: arXiv 2404.15574; their attention as a ranking: QRHead, arXiv 2506.09944.
Deviations: the anchor is read where it stands, not copied in front of every chunk; heads are those of keys, whose
queries vote together, and no pass over an empty question is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._choose import fill, products, standardised, unit_extremes, upper_bound, whole_extremes
from rag.engine.attention._chunk_layout import Choice, ChunkLayout
from rag.engine.attention._heads import checked_head, vote, voted
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["ChunkBlock"]


@dataclass(frozen=True, kw_only=True)
class ChunkBlock(Selection):
    """`anchor`: units that begin in the first so many slots of the prompt are read by all. What is not in a chunk is
    read by all behind it. A unit is `split` slots of a chunk; those of a chunk of at most `longer_than` slots have one
    score together.

    With `context` "best" the rows of a chunk read as many units before it as with the anchor and their own chunk come
    to the share `density` of the chunks' slots; with "own" no others. The first `dense_layers` layers are dense.

    The rows behind the last chunk read of the chunks' slots the share `density`: the anchor and the `floor` chunks with
    the highest priors in any case, then chunks by prior up to `prior_share` of it, then the best units. With
    `question_dense` that is so only for single tokens, which are the answer's: the question reads all. The choice of
    the question is used for `refresh` tokens of the answer, then each of its choices as long. `score` is the attention
    that the rows give to a unit ("mass"), the bound of Quest on it, or that to the mean key of a unit. All heads of a
    layer read the same.

    `heads` are (layer, kv head) whose attention tells where evidence stands: what the first `voters` rows behind the
    last chunk give to a slot of each chunk there, weighed by `head_weight`, counts beside its prior in all layers. They
    are known when the question has been read, so they choose for the answer.
    """

    name: ClassVar[str] = "chunk-block"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    density: float = 1.0
    anchor: int = 64
    floor: int = 1
    prior_weight: float = 0.0
    prior_share: float = 1.0
    heads: tuple[tuple[int, int], ...] = ()
    head_weight: float = 1.0
    voters: int = 32
    score: Literal["mass", "bound", "mean"] = "mass"
    context: Literal["best", "own"] = "best"
    question_dense: bool = True
    refresh: int = 16
    split: int = 16
    longer_than: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.score not in ("mass", "bound", "mean"):
            raise EngineError(
                "chunk-block: density must lie in (0, 1] and score be mass, bound or mean, not "
                f"{self.density} and {self.score!r}"
            )
        if self.context not in ("best", "own") or not 0 <= self.prior_share <= 1:
            raise EngineError(
                "chunk-block: context must be best or own and prior_share lie in [0, 1], not "
                f"{self.context!r} and {self.prior_share}"
            )
        positive = self.anchor, self.floor, self.prior_weight, self.longer_than, self.dense_layers, self.head_weight
        if min(*positive, self.refresh - 1, self.split - 1, self.voters - 1) < 0:
            raise EngineError(
                "chunk-block: anchor, floor, prior_weight, longer_than, dense_layers and head_weight must be >= 0, "
                "refresh, split and voters >= 1"
            )
        object.__setattr__(self, "heads", tuple(checked_head(one) for one in self.heads))

    @property
    def label(self) -> str:
        return f"{self.name}({self.density:g})"

    def layout(self, units: Units) -> ChunkLayout:
        """What follows from the chunks alone."""
        return ChunkLayout.of(
            units, split=self.split, longer_than=self.longer_than, anchor=self.anchor, floor=self.floor
        )  # fmt: skip

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.units is None or not len(step.units) or step.layer < self.dense_layers:
            return None
        layout: ChunkLayout | None = memory.across.get("chunk-block")
        if layout is None or layout.given is not step.units:
            layout = memory.across["chunk-block"] = self.layout(step.units)
        rows = step.row_blocks(None, layout.cuts)
        local = [layout.begin(int(step.places[start])) for start in rows[:-1]]
        behind = local[-1] == layout.stop
        mask = layout.anchors.expand(1, 1, len(local), -1)
        if self.context == "best" and self.density < 1 and not (behind and len(local) == 1):
            mask = self._before(step, memory, layout, rows, local)
        if behind and step.queries > 1:
            vote(step, memory, layout, rows[-2], self.heads, self.voters)
        dense = behind and (self.density >= 1 or (self.question_dense and step.queries > 1))
        if behind and self.density < 1:
            chosen = self._chosen(step, memory, layout, rows[-2])
            if not dense:
                wide = mask[:, :, :-1].expand(len(chosen), -1, -1, -1)
                mask = torch.cat((wide, chosen), dim=2) if len(local) > 1 else chosen
        if dense:
            local[-1] = 0  # from slot 0 on
        return Kept(layout.units, rows, tuple(local), mask)

    # ------------------------------------------------------------------ chunks

    def _before(
        self, step: Step, memory: Memory, layout: ChunkLayout, rows: tuple[int, ...], local: list[int]
    ) -> Tensor:
        """(batch, 1, row blocks, units): what the rows of each chunk read before it."""
        units, starts = layout.units, torch.tensor(local, device=step.device)[:, None]
        extremes = whole_extremes(step, memory, units, max(local))
        count = extremes.shape[2]
        later = units.stops > starts
        means = torch.stack([step.grouped[:, :, :, a:b].mean(3) for a, b in pairwise(rows)], dim=3)
        bounds = upper_bound(means.flatten(2, 3), extremes).float().reshape(*means.shape[:4], -1) * step.scaling
        bounds = bounds.masked_fill(later[:, :count], torch.finfo(bounds.dtype).min)
        votes = bounds.softmax(-1).sum((1, 2)).masked_fill(later[:, :count], -torch.inf)
        votes = pad(votes, (0, len(units) - count), value=-torch.inf)
        own = torch.tensor([int(step.places[end - 1]) + 1 for end in rows[1:]], device=step.device)[:, None] - starts
        left = int(self.density * int(units.lengths.sum())) - own
        return fill(votes, units.lengths, left, (layout.anchors & ~later).expand_as(votes))[:, None]

    # ------------------------------------------------------------------ question and answer

    def _chosen(self, step: Step, memory: Memory, layout: ChunkLayout, start: int) -> Tensor:
        """(batch, 1, 1, units): what the rows from `start` on read, all of which are behind the last chunk."""
        last: Choice | None = memory.held.get("choice")
        place = int(step.places[start])
        if step.queries == 1 and last is not None and last.mask is not None and place < last.slots + self.refresh:
            return last.mask
        mask = self._filled(self._scores(step, layout, start), layout, voted(memory, layout, self.heads))
        memory.held["choice"] = Choice(mask, int(step.places[-1]) + 1)
        return mask

    def _filled(self, votes: Tensor, layout: ChunkLayout, heads: Tensor | None) -> Tensor:
        """(batch, 1, 1, units): the best by `votes` (batch, scored units), priors and `heads` (batch, chunks)."""
        lengths, forced = layout.units.lengths, layout.always.expand(len(votes), -1)
        budget = int(self.density * int(lengths.sum()))
        of_scored = layout.scored.own_priors()
        if of_scored is not None:
            votes = votes + self.prior_weight * standardised(of_scored)
        if (chunks := self._chunk_scores(layout, heads)) is not None:
            scores = chunks[..., layout.units.parents].expand(len(votes), -1)
            forced = fill(scores, lengths, int(self.prior_share * budget), forced)
        scores = votes[:, layout.scored_as]
        return fill(scores, lengths, budget, forced.expand_as(scores))[:, None, None]

    def _chunk_scores(self, layout: ChunkLayout, heads: Tensor | None) -> Tensor | None:
        """(chunks) or (batch, chunks), z scores added; None where neither prior nor head says anything."""
        priors = layout.given.priors
        if heads is None:
            return priors
        weighed = self.head_weight * heads
        return weighed if priors is None else standardised(priors) + weighed

    def _scores(self, step: Step, layout: ChunkLayout, start: int) -> Tensor:
        """(batch, scored units), z scores: the log of the attention that the rows give to each, or what stands for
        it."""
        units, query = layout.scored, step.grouped[:, :, :, start:]
        key = step.key[:, :, : layout.stop]
        if self.score == "mass":
            logits = products(query.flatten(2, 3), key).float() * step.scaling
            given = logits.softmax(-1).sum((1, 2))
            of_slots = units.of_slots(layout.stop)
            mass = given.new_zeros(len(given), len(units) + 1).index_add_(1, of_slots, given)[:, :-1]
            return standardised(mass.clamp(min=torch.finfo(mass.dtype).tiny).log())
        mean = query.mean(3)
        if self.score == "bound":
            logits = upper_bound(mean, unit_extremes(key, units)).float() * step.scaling
        else:
            of_slots = units.of_slots(layout.stop)
            sums = key.new_zeros(*key.shape[:2], len(units) + 1, key.shape[3], dtype=torch.float32)
            means = sums.index_add_(2, of_slots, key.float())[:, :, :-1] / units.lengths[:, None]
            logits = mean.float() @ means.transpose(-1, -2) * step.scaling + units.lengths.log()
        return standardised(logits.log_softmax(-1).logsumexp((1, 2)))
