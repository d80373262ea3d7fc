"""ChunkLLM, arXiv 2510.02361: small adapters turn the queries and the keys of a layer into one head each, whose
products score the chunks; in decoding the chunks are chosen anew only when one has ended, which a chunk adapter in the
bottom layers tells.

Deviations: the adapters are linear, and see queries and keys before their rotation; a chunk's key is the mean of its
tokens'. Chunks are those of the prompt, cut to `chunk_size`, and pages where there are none: the chunk adapter, which
was trained on the ends of sentences, only says when to choose again, a token later, from the values of one layer. What
is chosen is cut to a budget of tokens, the last chunk in part. The mean query of a block of rows chooses in a prompt.
Without training the mean product of the heads scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._adapters import Trained, flat, trained, turned
from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention._choose import fill
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Chunkllm"]


@dataclass(frozen=True, kw_only=True)
class Chunkllm(Selection):
    """`budget` slots a row: the first `sink`, the last `local`, and of the rest the best chunks. A token of the answer
    that is not behind the end of a chunk reads what the one before chose, for `refresh` tokens at most. `weights` is a
    file of `eval.train_attention`; `trained=False` reads without one."""

    name: ClassVar[str] = "chunkllm"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    budget: int = 1024
    chunk_size: int = 64
    sink: int = 16
    local: int = 64
    refresh: int = 16
    weights: str = ""
    trained: bool = True
    q_block: int = 64

    def __post_init__(self) -> None:
        if min(self.chunk_size, self.local, self.refresh, self.q_block) < 1 or self.sink < 0:
            raise EngineError("chunkllm: chunk_size, local, refresh and q_block must be >= 1, sink >= 0")
        least = self.sink + max(self.local + self.refresh, self.q_block)
        if self.budget < least:
            raise EngineError(
                f"chunkllm: budget must hold sink and the larger of local + refresh and q_block: {least} slots, not "
                f"{self.budget}"
            )

    def select(self, step: Step, memory: Memory) -> Kept | None:
        held = self._weights()
        last = self._last(step, memory)
        if last is not None:
            rows: tuple[int, ...] = (0, 1)
            scores, local = last
        else:
            blocks = Blocks.of(step, self.q_block, window=self.local)
            rows, local = blocks.rows, blocks.local
            scores = self._scores(step, blocks, held)
            if step.queries == 1:
                memory.held["choice"] = _Choice(scores, local[0], step.first)
        if held is not None:
            _note_end(step, memory, held)
        own = torch.tensor([int(step.places[b - 1]) + 1 - at for b, at in zip(rows[1:], local, strict=True)])
        one = torch.ones((), dtype=torch.long, device=step.device)
        mask = fill(scores, one, (self.budget - own).to(step.device)[:, None])
        return Kept(Units.pages(max(local), 1, step.device), rows, local, mask)

    def _last(self, step: Step, memory: Memory) -> tuple[Tensor, tuple[int, ...]] | None:
        """Scores of an earlier token, if they still hold, and where its last slots began."""
        last: _Choice | None = memory.held.get("choice")
        if step.queries > 1 or last is None or last.scores is None or step.first - last.place >= self.refresh:
            return None
        # what is not known did not end a chunk: then `refresh` decides
        ended: dict[int, bool] = memory.across.get(self.name, {})
        return None if ended.get(step.first - 1, False) else (last.scores, (last.local,))

    def _weights(self) -> Trained | None:
        if self.weights:
            return trained(self.weights, self.name)
        if self.trained:
            raise EngineError(
                "chunkllm: weights must name a file that python -m eval.train_attention made for this model; "
                "trained=False reads without one"
            )
        return None

    def _scores(self, step: Step, blocks: Blocks, held: Trained | None) -> Tensor:
        """(batch, 1, blocks, slots before the last local ones): of every slot, that of its chunk."""
        stop = blocks.stop
        slots = torch.arange(stop, device=step.device)
        starts = _starts(step, stop, self.chunk_size)
        if not len(starts):
            return slots.new_zeros(step.batch, 1, len(blocks.local), 0, dtype=torch.float32)
        query, keys = _heads(step, blocks, held)
        sums = torch.cat((torch.zeros_like(keys[:, :1]), keys.cumsum(1)), dim=1)
        stops = torch.cat((starts[1:], starts.new_tensor([stop])))
        scores = query @ ((sums[:, stops] - sums[:, starts]) / (stops - starts)[:, None]).transpose(-1, -2)
        # the chunk in which a block's local slots begin counts up to there: its end is later than the block's rows
        at = torch.tensor(blocks.local, device=step.device)
        cut = torch.searchsorted(starts, at, right=True) - 1
        part = (sums[:, at] - sums[:, starts[cut]]) / (at - starts[cut]).clamp(min=1)[:, None]
        scores = scores.scatter(-1, cut[:, None].expand(step.batch, -1, -1), (query * part).sum(-1, keepdim=True))
        each = scores[..., torch.searchsorted(starts, slots, right=True) - 1]
        each = each.masked_fill(slots < self.sink, torch.inf).masked_fill(slots >= at[:, None], -torch.inf)
        return each[:, None]


def _heads(step: Step, blocks: Blocks, held: Trained | None) -> tuple[Tensor, Tensor]:
    """(batch, blocks, width) and (batch, slots before the last local ones, width): what is multiplied."""
    key = step.key[:, :, : blocks.stop].detach()
    if held is None:
        return flat(blocks.means(step).detach().mean(2)), flat(key)
    frequencies, adapter = held.rotary.to(step.device), held.layer(step)
    query = adapter.q_adapter(flat(turned(step.query.detach(), step.places, frequencies, back=True)))
    keys: Tensor = adapter.k_adapter(flat(turned(key, torch.arange(blocks.stop), frequencies, back=True)))
    return torch.stack([query[:, a:b].mean(1) for a, b in pairwise(blocks.rows)], dim=1), keys


def _starts(step: Step, stop: int, size: int) -> Tensor:
    """Where the chunks among the first `stop` slots begin."""
    edges = {0}
    if step.units is not None:
        edges |= {*step.units.starts.tolist(), *step.units.stops.tolist()}
    bounds = [*sorted(edge for edge in edges if edge < stop), stop]
    starts = [one for a, b in pairwise(bounds) for one in range(a, b, size)]
    return torch.tensor(starts, dtype=torch.long, device=step.device)


def _note_end(step: Step, memory: Memory, held: Trained) -> None:
    """In the layer of the chunk adapter: whether a chunk ends with the last token of the pass, of any of the batch."""
    adapter = held.boundary(step)
    if adapter is not None:
        slot = int(step.places[-1])
        ends = bool((adapter(step.value[:, :, slot : slot + 1]) > 0).any())
        before = memory.across.get(Chunkllm.name, {})
        memory.across[Chunkllm.name] = {slot: ends} | ({slot - 1: before[slot - 1]} if slot - 1 in before else {})


@dataclass(eq=False, slots=True)
class _Choice:
    """Scores (batch, 1, 1, local) that the query at `place` made of the slots before `local`."""

    scores: Tensor | None
    local: int
    place: int

    def rewind(self, slots: int) -> None:
        if slots <= self.place:
            self.scores = None
