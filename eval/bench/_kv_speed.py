"""The parts of `rag bench kv` beside chunk reuse: exactness, loading, batches, speculation. Times are CPU times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from eval.bench._kv_prompts import KvCase, Loaded

if TYPE_CHECKING:
    from rag.engine.draft import Draft

__all__ = ["batch", "exact", "load_costs", "speculation"]

NEW_TOKENS = 64
ALONE = 4


def exact(loaded: Loaded, cases: Sequence[KvCase], *, new_tokens: int = 32) -> dict[str, Any]:
    """In how many prompts each exact mode writes the tokens that full prefill and plain greedy decoding write.

    Compare in float32: other types round otherwise where several tokens run in one pass.
    """
    from rag.engine.decode import generate
    from rag.engine.draft import PromptLookup, SuffixDraft
    from rag.engine.prefill import prefill
    from rag.engine.prefix import PrefixPool, prefill_with_prefix
    from rag.engine.share import generate_many

    model = loaded.model
    pool = PrefixPool(max_bytes=1 << 34)
    same = dict.fromkeys(("prefix hit", "prompt lookup", "suffix draft", "batch"), 0)
    for case in cases:
        other = KvCase(prefix=case.prefix, chunks=case.chunks, tail=[*case.tail[: len(case.tail) // 2], *case.tail])
        expected = []
        for ids in (case.ids, other.ids):
            full = prefill(model, ids)
            expected.append(list(generate(model, full.cache, full.logits, max_new_tokens=new_tokens)))
        prefill_with_prefix(model, other.ids, pool)
        for name, draft in (
            ("prefix hit", None),
            ("prompt lookup", PromptLookup(case.ids)),
            ("suffix draft", SuffixDraft(case.ids)),
        ):
            done = prefill_with_prefix(model, case.ids, pool)
            got = list(generate(model, done.cache, done.logits, max_new_tokens=new_tokens, draft=draft))
            same[name] += got == expected[0]
        same["batch"] += generate_many(model, [case.ids, other.ids], max_new_tokens=new_tokens) == expected
    return {"dtype": str(model.dtype).removeprefix("torch."), "prompts": len(cases), "same": same}


def load_costs(loaded: Loaded, ids: Sequence[int], *, lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """For blocks of these lengths, as the model's type and as int8: CPU seconds of loading and of computing."""
    from rag.engine.measure import load_cost

    types: tuple[Literal["bf16", "fp32", "int8"], ...] = (
        "bf16" if str(loaded.model.dtype) == "torch.bfloat16" else "fp32",
        "int8",
    )
    rows = []
    for length in (one for one in lengths if one <= len(ids)):
        for kind in types:
            with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
                cost = load_cost(loaded.model, ids[:length], Path(folder), dtype=kind, repeats=2 * rounds + 1)
            rows.append(
                {
                    "tokens": length, "dtype": kind, "load_ms": 1000 * cost.load, "compute_ms": 1000 * cost.compute,
                    "ratio": cost.ratio, "bytes": cost.stored_bytes,
                }
            )  # fmt: skip
    return rows


def batch(loaded: Loaded, case: KvCase, tails: Sequence[Sequence[int]], *, rounds: int) -> dict[str, Any]:
    """CPU seconds until all first tokens of questions over one context are known, together and each alone; and of a
    token after the first, with the context in memory. The times of ALONE questions stand for those of all alone."""
    from rag.engine.prefill import prefill
    from rag.engine.share import prefill_batch

    model, context = loaded.model, case.ids[: -len(case.tail)]

    def together() -> object:
        return prefill_batch(model, prefill(model, context).cache, tails)

    def alone() -> object:
        for tail in tails[:ALONE]:
            prefill(model, [*context, *tail])
        return None

    share = len(tails) / min(ALONE, len(tails))

    times: dict[str, list[float]] = {"together": [], "alone": [], "decode_together": [], "decode_alone": []}
    for number in range(rounds):
        order: list[tuple[str, Callable[[], object]]] = [("together", together), ("alone", alone)]
        for name, run in order if number % 2 == 0 else reversed(order):
            times[name].append(_seconds(run) * (share if name == "alone" else 1))
        both, one = _decode_times(loaded, context, tails)
        times["decode_together"].append(both)
        times["decode_alone"].append(one)
    return {
        "questions": len(tails),
        "context_tokens": len(context),
        "rounds": times,
        "median": {name: median(values) for name, values in times.items()},
        "speedup": median(a / b for a, b in zip(times["alone"], times["together"], strict=True)),
        "decode_speedup": median(a / b for a, b in zip(times["decode_alone"], times["decode_together"], strict=True)),
    }


def _decode_times(loaded: Loaded, context: Sequence[int], tails: Sequence[Sequence[int]]) -> tuple[float, float]:
    """CPU seconds a token and question: (together, alone)."""
    from rag.engine.prefill import prefill
    from rag.engine.share import prefill_batch

    model, steps = loaded.model, 8
    rows = prefill_batch(model, prefill(model, context).cache, tails, room=steps)

    def together() -> None:
        for _ in range(steps):
            rows.step([0] * len(tails))

    caches = [prefill(model, [*context, *tail], model.new_cache(len(context) + 512)).cache for tail in tails[:ALONE]]

    def alone() -> None:
        for cache in caches:
            for _ in range(steps):
                model.run([0], cache)

    return _seconds(together) / (steps * len(tails)), _seconds(alone) / (steps * len(caches))


def speculation(
    loaded: Loaded, prompts: Sequence[tuple[str, Sequence[int]]], *, rounds: int, new_tokens: int = NEW_TOKENS
) -> list[dict[str, Any]]:
    """For every (kind, ids) prompt and way of drafting: tokens a CPU second behind a prefilled prompt, interleaved, and
    as a share of decoding without a draft."""
    from rag.engine.decode import generate
    from rag.engine.draft import PromptLookup, SuffixDraft
    from rag.engine.prefill import prefill

    model = loaded.model
    makers: dict[str, Callable[[Sequence[int]], Draft | None]] = {
        "plain": lambda _: None,
        "prompt-lookup": PromptLookup,
        "suffix": SuffixDraft,
    }
    rows = []
    for number, (kind, ids) in enumerate(prompts):
        done = prefill(model, ids, model.new_cache(len(ids) + new_tokens + 32))
        speeds: dict[str, list[float]] = {name: [] for name in makers}
        texts: dict[str, list[int]] = {}
        for turn in range(rounds + 1):  # the first is for warming up
            names = list(makers)[turn % 3 :] + list(makers)[: turn % 3]
            for name in names:
                done.cache.truncate(len(ids))
                begin = time.process_time()
                draft = makers[name](ids)  # reading the prompt into the draft is part of its price
                texts[name] = list(
                    generate(model, done.cache, done.logits, max_new_tokens=new_tokens, stops=loaded.stops, draft=draft)
                )
                if turn:
                    speeds[name].append(len(texts[name]) / max(1e-9, time.process_time() - begin))
        for name in makers:
            ratios = [a / b for a, b in zip(speeds[name], speeds["plain"], strict=True) if b]
            rows.append(
                {
                    "prompt": number, "kind": kind, "draft": name, "tokens": len(texts[name]),
                    "tokens_per_second": median(speeds[name]), "ratio": median(ratios) if ratios else None,
                    "same": texts[name] == texts["plain"],
                }
            )  # fmt: skip
    return rows


def _seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin
