"""CacheBlend, arXiv 2405.16444: the tokens whose KV deviates most are computed again, chosen anew in every layer.

The first two layers run over all tokens: what the first one keeps depends on the token alone, so deviation begins in
the second. From there on each layer passes fewer tokens to the next, those with the highest deviation in it (HKVD).

Deviations: the paper says "gradually" and gives the mean share; here the share falls in a line from `share` x (1 +
`shrink`) to `share` x (1 - `shrink`) over the layers after the second, `shrink` being less where that would pass 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError, InterruptedPrefillError
from rag.engine.layers import LayerPass
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy

__all__ = ["Blend"]


@dataclass(frozen=True, kw_only=True)
class Blend(RepairPolicy):
    """Repairs `share` of the reused tokens in a layer, on average over the layers after the second.

    In the result `repaired` and `computed` are means over the layers, rounded. `chunk_tokens` is not used: a layer runs
    whole, and `keep_going` is asked between layers.
    """

    share: float = 0.15
    shrink: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.shrink <= 1:
            raise EngineError(f"blend: share and shrink must lie in [0, 1], not {self.share} and {self.shrink}")

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        slots = range(layout.prefix, len(layout))
        fresh = torch.zeros(len(layout), dtype=torch.bool, device=model.device)
        fresh[list(layout.fresh)] = True
        reused, work = len(slots) - len(layout.fresh), 0
        run = LayerPass(model, cache, layout.ids[layout.prefix :], slots)
        while run.layer < model.layers:
            if work and keep_going is not None and not keep_going(work // model.layers, len(slots)):
                raise InterruptedPrefillError(work // model.layers, len(slots))
            before = run.held_next()
            run.step()
            work += len(run.slots)
            if 1 < run.layer < model.layers:
                count = round(self._share(run.layer, model.layers) * reused)
                run.keep(_highest(_deviation(before, run.held()), fresh[run.slots], count))
        computed = round(work / model.layers)
        repaired = computed - len(layout.fresh)
        return Prefill(cache, run.logits(), computed=computed, reused=len(layout) - computed, repaired=repaired)

    def _share(self, layer: int, layers: int) -> float:
        """Of the reused tokens, in `layer` (from 2 on, counted from 0)."""
        shrink = min(self.shrink, 1 / self.share - 1) if self.share else 0.0
        along = (layer - 2) / max(1, layers - 3)  # 0 to 1
        return self.share * (1 + shrink * (1 - 2 * along))


def _deviation(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    """(tokens): squared distance of keys and of values, summed over heads and dimensions."""
    return sum(
        ((new.float() - old.float()).square().sum(dim=(0, 2)) for old, new in zip(before, after, strict=True)),
        start=torch.zeros(after[0].shape[1], device=after[0].device),
    )


def _highest(deviation: Tensor, fresh: Tensor, count: int) -> Tensor:
    """Ascending rows: all fresh ones and the `count` others that deviate most."""
    most = deviation.masked_fill(fresh, -1.0).topk(min(count, int((~fresh).sum()))).indices
    return torch.cat((fresh.nonzero()[:, 0], most)).sort().values
