"""The interface of budgets, and prefill under one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from rag.engine.attend import WindowVotes
from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import Prefill, prefill

__all__ = ["KvBudget", "observed_prefill", "prefill_within", "shrink"]


class KvBudget(Protocol):
    """Keeps `budget` slots of every layer and head, on average over the layers."""

    @property
    def budget(self) -> int: ...

    @property
    def window(self) -> int:
        """How many of the prompt's last tokens vote apart from the others; 0 where no such votes are needed."""

    @property
    def whole(self) -> bool:
        """Whether the attention that all tokens of the prompt give is needed too; their prefill is slower then."""
        return False

    def slots(self, length: int, votes: WindowVotes, layers: int) -> list[Tensor]:
        """For every layer the slots of [0, length) to keep, ascending: (kv heads, kept), or (1, kept)."""

    def merge(
        self, layer: int, keys: Tensor, values: Tensor, slots: Tensor, votes: WindowVotes
    ) -> tuple[Tensor, Tensor] | None:
        """What stands in the kept `slots` (kv heads, kept) of a layer, from its keys and values (kv heads, length, d):
        two tensors (kv heads, kept, d). None: what stood there."""
        return None


def prefill_within(model: EngineModel, ids: Sequence[int], budget: KvBudget, *, chunk_tokens: int = 512) -> Prefill:
    """A full prefill, exact up to its last token, of which then `budget` slots stay; a prompt that fits stays whole.

    The cache cannot start another prompt afterwards and takes no repair; decoding goes on with the true positions.
    """
    model.require_chunk_reuse()  # other families may read a window, which slots that are gone would shift
    if len(ids) <= budget.budget:
        return prefill(model, ids, chunk_tokens=chunk_tokens)
    done, votes = observed_prefill(model, ids, window=budget.window, whole=budget.whole, chunk_tokens=chunk_tokens)
    shrink(done.cache, budget, votes)
    return done


def observed_prefill(
    model: EngineModel, ids: Sequence[int], *, window: int, whole: bool = False, chunk_tokens: int = 512
) -> tuple[Prefill, WindowVotes]:
    """A full prefill, with the votes of its last `window` tokens and, with `whole`, those of all tokens."""
    if window >= len(ids):
        raise EngineError(f"a window of {window} tokens votes on what stands before it, not on {len(ids)} tokens")
    cache, votes = model.new_cache(len(ids)), WindowVotes(whole=whole)
    if whole:
        cache.attention = {"votes": votes}
    if window:
        prefill(model, ids[:-window], cache, chunk_tokens=chunk_tokens)
        cache.attention = {"votes": votes}
        logits = model.run(ids[-window:], cache)[-1]
    else:
        logits = prefill(model, ids, cache, chunk_tokens=chunk_tokens).logits
    cache.attention = {}
    return Prefill(cache, logits, computed=len(ids)), votes


def shrink(cache: KvCache, budget: KvBudget, votes: WindowVotes) -> None:
    """Leaves in `cache`, which holds a whole prompt, what `budget` keeps of it."""
    cache.keep(budget.slots(cache.length, votes, len(cache.kv_layers)), partial(budget.merge, votes=votes))
