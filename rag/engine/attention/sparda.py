"""SparDA, arXiv 2606.04511: a layer's fourth projection, its forecast, says which blocks the next layer will read, so
that they can be on their way while this one runs. One forecast for each kv head; blocks are scored by their mean key.

Deviations: the forecast is made from the layer's queries, not from what they are made of, so that a model runs
unmodified; it was distilled from dense attention (the paper's models are sparse before). Nothing is fetched ahead here:
what is kept of the idea is the choice. The first layer, of which there is no forecast, is dense. Without training the
forecast is the mean query of the kv head, as it is: that neighbouring layers ask alike is all it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rag.engine.attention._adapters import trained, turned
from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention._blocks import Blocks
from rag.engine.attention._choose import fill, page_summaries, products
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError

__all__ = ["Sparda"]


@dataclass(frozen=True, kw_only=True)
class Sparda(Selection):
    """`budget` slots a row in blocks of `page_size`: the first `init_blocks`, those that hold the last `local` slots,
    and the best of the forecast. The first `dense_layers` layers are dense. `weights` is a file that
    `eval.train_attention` made; `trained=False` reads without one."""

    name: ClassVar[str] = "sparda"
    foresight: ClassVar[Literal["none", "block", "pass"]] = "block"
    budget: int = 1024
    page_size: int = 64
    init_blocks: int = 1
    local: int = 64
    dense_layers: int = 1
    weights: str = ""
    trained: bool = True
    q_block: int = 64

    def __post_init__(self) -> None:
        if min(self.page_size, self.local, self.q_block, self.dense_layers) < 1 or self.init_blocks < 0:
            raise EngineError("sparda: page_size, local, q_block and dense_layers must be >= 1, init_blocks >= 0")
        least = (self.init_blocks + 1) * self.page_size + max(self.local, self.q_block)
        if self.budget < least:
            raise EngineError(
                f"sparda: budget must hold init_blocks, the larger of local and q_block and a page: {least} slots, "
                f"not {self.budget}"
            )

    def select(self, step: Step, memory: Memory) -> Kept | None:
        blocks = Blocks.of(step, self.q_block, window=self.local, size=self.page_size)
        before: _Forecast | None = memory.across.get(self.name)
        memory.across[self.name] = _Forecast(step.layer, step.first, step.queries, self._forecast(step, blocks))
        if step.layer < self.dense_layers or before is None or not before.of(step):
            return None
        pages = blocks.stop // self.page_size
        width = step.key.shape[3]
        means = page_summaries(
            step, memory, "means", self.page_size, pages, width, lambda keys: keys.float().mean(3).to(keys.dtype)
        )
        units = Units.pages(blocks.stop, self.page_size, step.device)
        later = blocks.later(units.starts)
        scores = products(before.query, means.float()).masked_fill(later, -torch.inf)
        first = (torch.arange(pages, device=step.device) < self.init_blocks) & ~later
        size = torch.tensor(self.page_size, device=step.device)
        return Kept(
            units, blocks.rows, blocks.local, fill(scores, size, blocks.left(self.budget, step.device), first)
        )  # fmt: skip

    def _forecast(self, step: Step, blocks: Blocks) -> Tensor:
        """(batch, kv heads, blocks, d) float32: what the blocks of rows will ask in the next layer."""
        if not self.weights:
            if self.trained:
                raise EngineError(
                    "sparda: weights must name a file that python -m eval.train_attention made for this model; "
                    "trained=False reads without one"
                )
            return blocks.means(step).detach().float().mean(2)
        held = trained(self.weights, self.name)
        frequencies = held.rotary.to(step.device)
        made = held.layer(step)(turned(step.query.detach(), step.places, frequencies, back=True))
        rows = turned(made, step.places, frequencies)
        return torch.stack([rows[:, :, a:b].mean(2) for a, b in pairwise(blocks.rows)], dim=2)


@dataclass(frozen=True, eq=False, slots=True)
class _Forecast:
    """Made in `layer`, in the pass of so many `queries` that began at slot `first`."""

    layer: int
    first: int
    queries: int
    query: Tensor

    def of(self, step: Step) -> bool:
        return (self.layer + 1, self.first, self.queries) == (step.layer, step.first, step.queries)
