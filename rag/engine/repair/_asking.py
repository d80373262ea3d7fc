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
from rag.engine.layers import LayerPass
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy

__all__ = ["QuestionRepair", "check_asking"]


def check_asking(name: str, share: float, window: int) -> None:
    if not 0 <= share <= 1 or window < 0:
        raise EngineError(f"{name}: share must lie in [0, 1] and window be >= 0, not {share} and {window}")


class QuestionRepair(RepairPolicy, Protocol):
    """Repairs `share` of the tokens of all blocks but a first one that stands behind its true prefix, beside those that
    `always` names.

    In the result `computed` counts the tokens that ran alone twice, since they run again.
    """

    @property
    def share(self) -> float: ...

    @property
    def depth(self) -> float:
        """The share of the layers that are asked."""
        return 1.0

    @property
    def late(self) -> float:
        """Of the chosen tokens, the share that also runs through the layers that are not asked."""
        return 1.0

    def asking(self, new: Sequence[int]) -> Sequence[int]:
        """Which of the `new` positions after the last block ask; a stretch of them."""

    def always(self, layout: Layout) -> set[int]:
        """Positions of blocks that are repaired whatever the question reads."""
        return set()

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
        always, places = self.always(layout), _repairable(layout)
        rest = [at for at in places if at not in always]
        count = min(round(self.share * len(places)), len(rest))
        if count in (0, len(rest)):
            return complete(
                model, cache, layout, {*always, *rest[:count]}, chunk_tokens=chunk_tokens, keep_going=keep_going
            )
        last = max(place.stop for place in layout.placed)
        asking = self.asking([at for at in layout.fresh if at >= last])
        before = [at for at in layout.fresh if at < asking[0]]
        scores = self._scores(model, cache, layout, before, asking, chunk_tokens)[rest]
        done, total = len(before) + len(asking), len(layout.fresh) + len(always) + count
        if keep_going is not None and not keep_going(done, done + total):
            raise InterruptedPrefillError(done, done + total)
        chosen = [rest[int(row)] for row in scores.argsort(descending=True, stable=True)[:count]]
        read = complete(
            model, cache, layout, {*always, *chosen}, chunk_tokens=chunk_tokens, keep_going=keep_going,
            leaving=chosen[round(self.late * count) :], layers=self._asked_layers(model),
        )  # fmt: skip
        return replace(read, computed=read.computed + done)

    def _asked_layers(self, model: EngineModel) -> int:
        return max(1, round(self.depth * model.layers))

    def _scores(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        before: Sequence[int],
        asking: Sequence[int],
        chunk_tokens: int,
    ) -> Tensor:
        """(tokens of the prompt) on CPU, rounded, so that the order of summation decides no tie."""
        _run(model, cache, layout, before, chunk_tokens)
        layers, total = self._asked_layers(model), torch.zeros(len(layout))
        for start in range(0, len(asking), chunk_tokens):
            cache.attention = {"votes": (votes := WindowVotes())}
            step = asking[start : start + chunk_tokens]
            try:
                asked = LayerPass(model, cache, [layout.ids[at] for at in step], step)
                for _ in range(layers):
                    asked.step()
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
