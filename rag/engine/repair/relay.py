"""RelayCaching, arXiv 2603.13289: an answer's keys and values, made while it was written, serve where it is read again.

In a flow of several steps the answer of one becomes a part of the next prompt. What it keeps from decoding deviates
from what a prefill there would give in few layers and at few tokens; those tokens are computed again.

Deviations: tokens are the unit, in all layers, not ranges of layers. The first `k` of every block are taken, and of the
others the share that deviates most in layer `layers`: for that all new and reused tokens run through the first `layers`
layers in their new place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rag.engine.blocks import KvBlock, cut_block
from rag.engine.cache import KvCache
from rag.engine.chunks import complete
from rag.engine.errors import EngineError, InterruptedPrefillError
from rag.engine.layers import LayerPass
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy, first_tokens
from rag.engine.tiers import KvTiers

__all__ = ["Relay", "cut_answer", "relayed"]

RELAY = "relay"
"""The policy under which blocks of answers are kept."""


@dataclass(frozen=True, kw_only=True)
class Relay(RepairPolicy):
    """Repairs the first `k` tokens of each block and, of its others, the `share` with the highest deviation.

    `layers` of 0 takes no look: only the first tokens are repaired. Blocks of any kind will do.
    """

    k: int = 4
    share: float = 0.15
    layers: int = 2

    def __post_init__(self) -> None:
        if self.k < 0 or not 0 <= self.share <= 1 or self.layers < 0 or self.layers == 1:
            raise EngineError(
                "relay: k must be >= 0, share in [0, 1], layers 0 or >= 2 (what the first keeps depends on the token "
                f"alone), not {self.k}, {self.share} and {self.layers}"
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
        first = set(first_tokens(layout.placed, self.k))
        others = [p for place in layout.placed for p in range(place.start, place.stop) if p not in first]
        count = round(self.share * len(others)) if self.layers else 0
        if count == len(others):
            repair = first.union(others)
        elif count:
            deviation = self._deviation(model, cache, layout, keep_going)
            repair = first.union(sorted(others, key=lambda p: (-deviation[p - layout.prefix], p))[:count])
        else:
            repair = first
        return complete(model, cache, layout, repair, chunk_tokens=chunk_tokens, keep_going=keep_going)

    def _deviation(
        self, model: EngineModel, cache: KvCache, layout: Layout, keep_going: KeepGoing | None
    ) -> list[float]:
        """Of every token behind the prefix: squared distance of what the last of the `layers` first layers keeps from
        what was reused there, keys and values, relative to the length of what was reused."""
        run = LayerPass(model, cache, layout.ids[layout.prefix :], range(layout.prefix, len(layout)))
        before = run.held_next()
        for _ in range(min(self.layers, model.layers)):
            if keep_going is not None and not keep_going(0, len(layout) - layout.prefix):
                raise InterruptedPrefillError(0, len(layout) - layout.prefix)
            before = run.held_next()
            run.step()
        far = torch.zeros(len(run.slots), device=model.device)
        for old, new in zip(before, run.held(), strict=True):
            size = old.float().square().sum(dim=(0, 2)).clamp_min(1e-12)
            far += (new.float() - old.float()).square().sum(dim=(0, 2)) / size
        found: list[float] = far.tolist()
        return found


def cut_answer(model: EngineModel, cache: KvCache, start: int, answer: Sequence[int]) -> KvBlock | None:
    """The block of the `answer` that was decoded behind the `start` tokens of its prompt, from the cache of that run.

    The last token that was chosen never ran: without a stop the block lacks it. None where nothing ran.
    """
    if cache.moved:
        raise EngineError("the prompt of this cache was moved or cut down: its positions are not those of the text")
    held = min(len(answer), cache.length - start)
    return cut_block(model, cache, start, answer[:held]) if held > 0 else None


def relayed(tiers: KvTiers, model: EngineModel, answer: Sequence[int]) -> list[KvBlock | Sequence[int]]:
    """The parts of a prompt that `answer` makes: the block that was put under RELAY, of all of it or of all but the
    last token, and what it lacks as plain ids. Ids decide, so an answer that was encoded anew may not be found."""
    for held in (len(answer), len(answer) - 1):
        block = tiers.get(answer[:held], model.fingerprint, RELAY) if held > 0 else None
        if block is not None:
            return [block, *([list(answer[held:])] if held < len(answer) else [])]
    return [list(answer)] if answer else []
