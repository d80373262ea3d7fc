"""ProphetKV, arXiv 2602.02579: the question chooses which reused tokens are computed again.

First the new tokens alone run behind the assembled cache, and what the last of them attend to is summed over heads and
layers. Then the reused tokens that got the most attention run again, together with the new ones: what the question
reads is exact, what it does not read may stay as it was.

Deviations: the layers are fused by their plain sum, and a share of the reused tokens is repaired, `share`; we did not
check the paper's own weights against its code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

__all__ = ["Prophet"]


@dataclass(frozen=True, kw_only=True)
class Prophet(RepairPolicy):
    """Repairs `share` of the tokens of all blocks but a first one that stands behind its true prefix. The last
    `window` of the new tokens after the last block vote, all of them where `window` is 0.

    In the result `computed` counts the new tokens twice, since they run twice.
    """

    share: float = 0.1
    window: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.window < 0:
            raise EngineError(
                f"prophet: share must lie in [0, 1] and window be >= 0, not {self.share} and {self.window}"
            )

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
        votes = self._votes(model, cache, layout, chunk_tokens)
        done = len(layout.fresh)
        if keep_going is not None and not keep_going(done, 2 * done + count):
            raise InterruptedPrefillError(done, 2 * done + count)
        # rounded, so that the order of summation decides no tie
        scores = (votes[places] * 1e6).round()
        chosen = [places[int(row)] for row in scores.argsort(descending=True, stable=True)[:count]]
        read = complete(model, cache, layout, chosen, chunk_tokens=chunk_tokens, keep_going=keep_going)
        return replace(read, computed=read.computed + done)

    def _votes(self, model: EngineModel, cache: KvCache, layout: Layout, chunk_tokens: int) -> Tensor:
        """(tokens of the prompt), summed over layers and heads, on CPU."""
        last = max(place.stop for place in layout.placed)
        voters = [at for at in layout.fresh if at >= last][-self.window :]
        others = [at for at in layout.fresh if at < voters[0]]
        for start in range(0, len(others), chunk_tokens):
            step = others[start : start + chunk_tokens]
            model.run([layout.ids[at] for at in step], cache, slots=step)
        total = torch.zeros(len(layout))
        for start in range(0, len(voters), chunk_tokens):
            step = voters[start : start + chunk_tokens]
            cache.attention = {"votes": (votes := WindowVotes())}
            try:
                model.run([layout.ids[at] for at in step], cache, slots=step)
            finally:
                cache.attention = {}
            for of_layer in votes.of_layer.values():
                total[: of_layer.shape[-1]] += of_layer.sum(0).float().cpu()
        return total


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
