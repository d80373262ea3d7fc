"""The interface of budgets, and prefill under one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import Prefill, prefill

__all__ = ["KvBudget", "prefill_within"]


class KvBudget(Protocol):
    """Keeps `budget` slots of every layer and head."""

    @property
    def budget(self) -> int: ...

    @property
    def window(self) -> int:
        """How many of the prompt's last tokens vote; 0 where no votes are needed."""

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        """For every layer the slots of [0, length) to keep, ascending: (kv heads, budget), or (1, budget)."""


def prefill_within(model: EngineModel, ids: Sequence[int], budget: KvBudget, *, chunk_tokens: int = 512) -> Prefill:
    """A full prefill, exact up to its last token, of which then `budget` slots stay; a prompt that fits stays whole.

    The cache cannot start another prompt afterwards and takes no repair; decoding goes on with the true positions.
    """
    model.require_chunk_reuse()  # other families may read a window, which slots that are gone would shift
    if len(ids) <= budget.budget:
        return prefill(model, ids, chunk_tokens=chunk_tokens)
    cache, votes = model.new_cache(len(ids)), WindowVotes()
    if budget.window >= len(ids):
        raise EngineError(
            f"a window of {budget.window} tokens votes on what stands before it, not on {len(ids)} tokens"
        )
    if budget.window:
        prefill(model, ids[: -budget.window], cache, chunk_tokens=chunk_tokens)
        cache.attention = {"votes": votes}
        logits = model.run(ids[-budget.window :], cache)[-1]
        cache.attention = {}
    else:
        logits = prefill(model, ids, cache, chunk_tokens=chunk_tokens).logits
    cache.keep(budget.slots(len(ids), votes, model.layers))
    return Prefill(cache, logits, computed=len(ids))
