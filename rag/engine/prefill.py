"""Prompts into a cache, in chunks between which the caller may stop, and greedy decoding after them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.decode import generate
from rag.engine.errors import EngineError, InterruptedPrefillError
from rag.engine.model import EngineModel

__all__ = ["PartCount", "Prefill", "greedy", "prefill"]

KeepGoing = Callable[[int, int], bool]
"""Asked between chunks with (tokens done, tokens in all); False stops."""


@dataclass(frozen=True, slots=True)
class PartCount:
    """Of the `tokens` of a part of a prompt `reused` and `repaired` as in `Prefill`; all others were new. `repaired` is
    None where the policy repairs other tokens in every layer; `reused` are then all that were copied."""

    tokens: int
    reused: int = 0
    repaired: int | None = 0


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt in a cache. `logits` (vocabulary), float32, are those after its last token.

    `reused` tokens were copied and left as they were; `repaired` ones were copied and computed again; `computed` counts
    every token that ran through the model, repaired ones among them. `repaired_at` are the positions of the repaired
    ones, where they are the same in all layers; `parts` the counts of the prefix and of every part behind it.
    """

    cache: KvCache
    logits: Tensor
    computed: int
    reused: int = 0
    repaired: int = 0
    repaired_at: tuple[int, ...] = ()
    parts: tuple[PartCount, ...] = ()


def prefill(
    model: EngineModel,
    ids: Sequence[int],
    cache: KvCache | None = None,
    *,
    chunk_tokens: int = 512,
    keep_going: KeepGoing | None = None,
) -> Prefill:
    """Computes the ids that `cache` does not hold yet; what it holds must be the start of `ids`.

    Chunked as in SARATHI, arXiv 2308.16369. Raises InterruptedPrefillError between chunks when `keep_going` says no;
    the same call with the same cache then goes on.
    """
    if chunk_tokens < 1:
        raise EngineError(f"chunk_tokens must be >= 1, not {chunk_tokens}")
    cache = cache if cache is not None else model.new_cache(len(ids))
    start, total = cache.length, len(ids)
    if start >= total:
        raise EngineError(f"nothing to compute: the cache holds {start} tokens, the prompt has {total}")
    if cache.dropped:
        raise EngineError(f"{cache.dropped} tokens of this cache are gone: it is the start of no prompt")
    cache.reserve(total)
    while True:
        stop = min(cache.length + chunk_tokens, total)
        logits = model.run(ids[cache.length : stop], cache)
        if stop == total:
            return Prefill(cache, logits[-1], computed=total - start, reused=start)
        if keep_going is not None and not keep_going(stop, total):
            raise InterruptedPrefillError(stop, total)


def greedy(
    model: EngineModel, cache: KvCache, logits: Tensor, *, max_new_tokens: int, stops: Collection[int] = ()
) -> Iterator[int]:
    """The most likely token, one by one, up to a stop id, which is not given. `logits` follow what the cache holds.

    The cache grows by every token but the last one given.
    """
    return generate(model, cache, logits, max_new_tokens=max_new_tokens, stops=stops)
