"""Repair of what the question reads: a pass of the new tokens alone says which reused tokens run again with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.cache import KvCache
from rag.engine.chunks import complete
from rag.engine.errors import EngineError, InterruptedPrefillError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy

__all__ = ["QuestionRepair", "check_asking"]


def check_asking(name: str, share: float, window: int) -> None:
    if not 0 <= share <= 1 or window < 0:
        raise EngineError(f"{name}: share must lie in [0, 1] and window be >= 0, not {share} and {window}")


class QuestionRepair(RepairPolicy, Protocol):
    """Repairs `share` of the tokens of all blocks but a first one that stands behind its true prefix. The last
    `window` of the new tokens after the last block ask, all of them where `window` is 0.

    In the result `computed` counts the new tokens twice, since they run twice.
    """

    @property
    def share(self) -> float: ...

    @property
    def window(self) -> int: ...

    def weigh(self, votes: Tensor, cache: KvCache, layer: int) -> Tensor:
        """(slots) of a layer, from the attention (kv heads, slots) that the question gave."""

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        places = _repairable(layout)
        count = round(self.share * len(places))
        if not count or count == len(places):
            return complete(model, cache, layout, places[:count], chunk_tokens=chunk_tokens, keep_going=keep_going)
        scores = self._scores(model, cache, layout, chunk_tokens)[places]
        done = len(layout.fresh)
        if keep_going is not None and not keep_going(done, 2 * done + count):
            raise InterruptedPrefillError(done, 2 * done + count)
        chosen = [places[int(row)] for row in scores.argsort(descending=True, stable=True)[:count]]
        read = complete(model, cache, layout, chosen, chunk_tokens=chunk_tokens, keep_going=keep_going)
        return replace(read, computed=read.computed + done)

    def _scores(self, model: EngineModel, cache: KvCache, layout: Layout, chunk_tokens: int) -> Tensor:
        """(tokens of the prompt) on CPU, rounded, so that the order of summation decides no tie."""
        last = max(place.stop for place in layout.placed)
        asking = [at for at in layout.fresh if at >= last][-self.window :]
        _run(model, cache, layout, [at for at in layout.fresh if at < asking[0]], chunk_tokens)
        total = torch.zeros(len(layout))
        for start in range(0, len(asking), chunk_tokens):
            cache.attention = {"votes": (votes := WindowVotes())}
            try:
                _run(model, cache, layout, asking[start : start + chunk_tokens], chunk_tokens)
            finally:
                cache.attention = {}
            for layer, given in votes.of_layer.items():
                total[: given.shape[-1]] += self.weigh(given, cache, layer).float().cpu()
        return (total / total.max().clamp_min(1e-12) * 1e6).round()


def _run(model: EngineModel, cache: KvCache, layout: Layout, slots: Sequence[int], chunk_tokens: int) -> None:
    for start in range(0, len(slots), chunk_tokens):
        step = slots[start : start + chunk_tokens]
        model.run([layout.ids[at] for at in step], cache, slots=step)


def _repairable(layout: Layout) -> list[int]:
    """Positions of all blocks, without those of a first one that is as a full prefill would have it: other blocks know
    how much they vary, and that one does not."""
    measured = any(place.block.variance is not None for place in layout.placed)
    return [
        position
        for place in layout.placed
        if place.block.variance is not None or not measured
        for position in range(place.start, place.stop)
    ]
