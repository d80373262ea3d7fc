"""Prefill and decoding of a whole model, for `rag bench attention`: stock transformers, the cache that is written in
place, and selections. Times are CPU seconds; contenders run in turns, and ratios are taken inside a turn.

Stock is transformers as it comes: its default attention and DynamicCache. The in-place cache is dense and exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from eval.bench._attention_ops import CHUNK, interleaved
from eval.bench._attention_plans import Plan
from eval.bench._kv_prompts import Loaded
from rag.engine.attention import Sparse, Units, read_sparsely

if TYPE_CHECKING:
    from rag.engine.cache import KvCache

__all__ = ["IN_PLACE", "STOCK", "end_rows"]

STOCK, IN_PLACE = "stock", "in-place dense"
STEPS = 8
WARM = 512
"""Tokens that run before the clock does."""
TURNS = 5
"""Of decoding, for every round: each of STEPS tokens."""


def end_rows(loaded: Loaded, ids: Sequence[int], plans: Sequence[Plan], *, rounds: int) -> list[dict[str, Any]]:
    """For both stages and every contender: CPU seconds (of the prompt, of a token), times faster than stock and than
    the in-place cache, and the density read. The last STEPS ids are the tokens that are decoded."""
    prompt, forced = list(ids[:-STEPS]), list(ids[-STEPS:])
    densities: dict[str, float] = {STOCK: 1.0, IN_PLACE: 1.0}
    caches: dict[str, KvCache] = {}

    def ours(plan: Plan | None) -> Callable[[], object]:
        def run() -> None:
            cache, name = loaded.model.new_cache(len(ids)), IN_PLACE if plan is None else plan.name
            sparse = None if plan is None else Sparse(plan.selection, "gather", _units(len(prompt)))
            with nullcontext() if sparse is None else read_sparsely(loaded.model.model, sparse):
                loaded.model.run(prompt, cache)
            caches[name] = cache
            if sparse is not None:
                densities[name] = sparse.stats.density

        return run

    def stock() -> None:
        with torch.no_grad():
            loaded.model.model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    contenders = {STOCK: stock, IN_PLACE: ours(None), **{one.name: ours(one) for one in plans}}
    with torch.inference_mode():
        loaded.model.run(prompt[:WARM], loaded.model.new_cache(WARM))  # weights are laid out for products only once
        times = interleaved_once(contenders, rounds)
        rows = _rows("prefill", len(prompt), times, densities, 1)
        return rows + _decoded(loaded, caches[IN_PLACE], forced, plans, TURNS * rounds)


def interleaved_once(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """As `interleaved`, but each turn counts: at 8,000 tokens one takes a minute."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        at = number % len(contenders)
        for name in [*contenders][at:] + [*contenders][:at]:
            begin = time.process_time()
            contenders[name]()
            times[name].append(time.process_time() - begin)
    return times


def _units(tokens: int) -> Units:
    head, tail = min(32, tokens // 8), min(64, tokens // 8)
    starts = range(head, tokens - tail - CHUNK + 1, CHUNK)
    return Units.of_spans([(at, at + CHUNK) for at in starts] or [(head, tokens - tail)])


def _decoded(
    loaded: Loaded, cache: KvCache, forced: Sequence[int], plans: Sequence[Plan], rounds: int
) -> list[dict[str, Any]]:
    """All go on from one dense prompt; stock from a copy of it."""
    from transformers import DynamicCache

    length = cache.length
    held = DynamicCache()
    for number, (key, value) in enumerate(zip(*cache.read(0, length), strict=True)):
        held.update(key[None].clone(), value[None].clone(), number)
    densities: dict[str, float] = {STOCK: 1.0, IN_PLACE: 1.0}

    def stock() -> None:
        held.crop(length - held.get_seq_length())
        for token in forced:
            loaded.model.model(input_ids=torch.tensor([[token]]), past_key_values=held, use_cache=True)

    def ours(plan: Plan | None) -> Callable[[], object]:
        sparse = None if plan is None else Sparse(plan.selection, "gather", _units(length))

        def run() -> None:
            cache.truncate(length)
            with nullcontext() if sparse is None else read_sparsely(loaded.model.model, sparse):
                for token in forced:
                    loaded.model.run([token], cache)
            if plan is not None and sparse is not None:
                densities[plan.name] = sparse.stats.density

        return run

    contenders = {STOCK: stock, IN_PLACE: ours(None), **{one.name: ours(one) for one in plans}}
    return _rows("decode", length, interleaved(contenders, rounds), densities, len(forced))


def _rows(
    stage: str, tokens: int, times: Mapping[str, Sequence[float]], densities: Mapping[str, float], count: int
) -> list[dict[str, Any]]:
    def ratio(base: str, name: str) -> float:
        return median(a / max(1e-9, b) for a, b in zip(times[base], times[name], strict=True))

    return [
        {
            "stage": stage, "tokens": tokens, "contender": name, "density": densities[name],
            "seconds": median(own) / count, "over_stock": ratio(STOCK, name), "over_in_place": ratio(IN_PLACE, name),
            "turns": len(own),
        }
        for name, own in times.items()
    ]  # fmt: skip
