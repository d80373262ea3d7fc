"""What reuse of chunks costs and how far it strays, policy by policy, for `rag bench kv`.

All policies see the same prompts, one after the other in an order that chance makes anew for every prompt, between two
full prefills. Cost is CPU time to the logits of the first token, with the blocks in memory, as a share of full prefill.
Blocks are made before the clock starts: that is ingestion.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from eval.bench._kv_prompts import KvCase, Loaded

if TYPE_CHECKING:
    from rag.engine.blocks import KvBlock
    from rag.engine.donor import DonorMean
    from rag.engine.prefill import Prefill

__all__ = ["OURS", "PUBLISHED", "interval", "measure", "summary"]

FORCED = 32
PREFIX_HIT = "prefix-hit"
OURS = ("donor-mean", "donor-mean+v5", "donor-mean+v15", "mix", "mix+f16", "mix+f16+v5", "mix+v15")
PUBLISHED = ("naive", "epic-16", "blend-15", "cache-craft", "ape")
_Recipe = tuple[str, Any]
"""Kind of the blocks, repair policy."""


def recipes() -> dict[str, _Recipe]:
    """Every policy with the blocks it is meant for. "mix" takes the first chunk as it is behind the true prefix."""
    from rag.engine.repair.ape import Ape
    from rag.engine.repair.blend import Blend
    from rag.engine.repair.cache_craft import CacheCraft
    from rag.engine.repair.epic import Epic
    from rag.engine.repair.first_variance import FirstVariance
    from rag.engine.repair.naive import Naive
    from rag.engine.repair.variance import Variance

    return {
        "naive": ("solo", Naive()),
        "epic-16": ("solo", Epic(k=16)),
        "blend-15": ("solo", Blend(share=0.15)),
        "cache-craft": ("observed", CacheCraft()),
        "ape": ("prefixed", Ape()),
        "donor-mean": ("mean", Naive()),
        "donor-mean+v5": ("mean", Variance(share=0.05)),
        "donor-mean+v15": ("mean", Variance(share=0.15)),
        "mix": ("mix", Naive()),
        "mix+f16": ("mix", FirstVariance(k=16, share=0.0)),
        "mix+f16+v5": ("mix", FirstVariance(k=16, share=0.05)),
        "mix+v15": ("mix", Variance(share=0.15)),
    }


@dataclass(frozen=True, kw_only=True)
class _Makers:
    means: DonorMean
    unrelated: Sequence[Sequence[int]]


def measure(
    loaded: Loaded,
    cases: Sequence[KvCase],
    donors: Sequence[Sequence[int]],
    *,
    policies: Sequence[str] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """A row for every prompt and policy: name, cost, kl, first_kl, agreement, tokens, repaired."""
    from rag.engine.donor import DonorMean

    chosen = {name: one for name, one in recipes().items() if policies is None or name in policies}
    makers = _Makers(
        means=DonorMean(loaded.model, cases[0].prefix, donors),
        unrelated=[donor[:PASSAGE_BEFORE] for donor in donors[:2]],
    )
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        tell(f"prompt {number + 1} of {len(cases)}: {len(case.ids)} tokens")
        draw = random.Random(seed + number)  # noqa: S311
        rows += _one(loaded, case, makers, chosen, draw, number)
    return rows


PASSAGE_BEFORE = 200
"""Tokens of each of the two passages behind which Cache-Craft's blocks are observed."""


def _one(
    loaded: Loaded, case: KvCase, makers: _Makers, chosen: Mapping[str, _Recipe], draw: random.Random, number: int
) -> list[dict[str, Any]]:
    from rag.engine.decode import generate
    from rag.engine.measure import divergence, forced_logits

    model, ids = loaded.model, case.ids
    kinds = {kind for kind, _ in chosen.values()}
    blocks = _blocks(loaded, case, makers, kinds)
    full, first = _clocked(_full(loaded, case))
    answer = list(generate(model, full.cache, full.logits, max_new_tokens=FORCED))
    full.cache.truncate(len(ids))
    reference = forced_logits(model, full.cache, full.logits, answer)
    runs = {PREFIX_HIT: _prefix_hit(loaded, case)}
    runs |= {name: _reuse(loaded, case, blocks[kind], policy) for name, (kind, policy) in chosen.items()}
    rows: list[dict[str, Any]] = []
    for name in draw.sample(list(runs), len(runs)):
        done, seconds = _clocked(runs[name])
        told = divergence(reference, forced_logits(model, done.cache, done.logits, answer))
        rows.append(
            {
                "prompt": number, "tokens": len(ids), "policy": name, "seconds": seconds, "kl": told.kl,
                "first_kl": told.first_kl, "agreement": told.agreement, "repaired": done.repaired,
            }
        )  # fmt: skip
    _, last = _clocked(_full(loaded, case))
    for row in rows:
        row["cost"] = row.pop("seconds") / mean((first, last))
    return rows


def _clocked(run: Callable[[], Prefill]) -> tuple[Prefill, float]:
    begin = time.process_time()
    done = run()
    return done, time.process_time() - begin


def _full(loaded: Loaded, case: KvCase) -> Callable[[], Prefill]:
    from rag.engine.prefill import prefill

    return lambda: prefill(loaded.model, case.ids, loaded.model.new_cache(len(case.ids) + FORCED))


def _prefix_hit(loaded: Loaded, case: KvCase) -> Callable[[], Prefill]:
    """All but the question was asked about before."""
    from rag.engine.prefill import prefill
    from rag.engine.prefix import PrefixPool, prefill_with_prefix

    pool = PrefixPool(max_bytes=1 << 34)
    context = case.ids[: -len(case.tail)]
    pool.store(context, prefill(loaded.model, context).cache)
    return lambda: prefill_with_prefix(loaded.model, case.ids, pool, room=FORCED)


def _reuse(loaded: Loaded, case: KvCase, blocks: Sequence[KvBlock], policy: Any) -> Callable[[], Prefill]:
    from rag.engine.chunks import prefill_chunks
    from rag.engine.prefill import prefill

    keys, values = prefill(loaded.model, case.prefix).cache.read(0, len(case.prefix))

    def run() -> Prefill:
        cache = loaded.model.new_cache(len(case.ids) + FORCED)
        cache.append(keys, values)
        return prefill_chunks(loaded.model, cache, case.prefix, [*blocks, case.tail], policy)

    return run


def _blocks(loaded: Loaded, case: KvCase, makers: _Makers, kinds: set[str]) -> dict[str, list[KvBlock]]:
    from rag.engine.blocks import make_block
    from rag.engine.observed import make_observed_block

    model, found = loaded.model, {}
    if "solo" in kinds:
        found["solo"] = [make_block(model, chunk) for chunk in case.chunks]
    if "prefixed" in kinds:
        found["prefixed"] = [make_block(model, chunk, case.prefix) for chunk in case.chunks]
    if kinds & {"mean", "mix"}:
        found["mean"] = [makers.means.block(chunk) for chunk in case.chunks]
        first = make_block(model, case.chunks[0], case.prefix)
        found["mix"] = [replace(first, variance=None), *found["mean"][1:]]
    if "observed" in kinds:
        found["observed"] = [make_observed_block(model, chunk, case.prefix, makers.unrelated) for chunk in case.chunks]
    return found


# ---------------------------------------------------------------------- figures


def summary(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """For every policy: median cost, mean KL and agreement with 95 % bootstrap intervals over the prompts."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    found = []
    for name in sorted(names):
        own = [row for row in rows if row["policy"] == name]
        figures = {key: [float(row[key]) for row in own] for key in ("cost", "kl", "agreement", "first_kl")}
        found.append(
            {
                "policy": name,
                "prompts": len(own),
                "tokens": median(row["tokens"] for row in own),
                "cost": median(figures["cost"]),
                "kl": mean(figures["kl"]),
                "kl_interval": interval(figures["kl"], seed=seed),
                "agreement": mean(figures["agreement"]),
                "agreement_interval": interval(figures["agreement"], seed=seed),
                "first_kl": mean(figures["first_kl"]),
                "repaired": mean(row["repaired"] for row in own),
            }
        )
    return found


def interval(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> list[float]:
    """The middle 95 % of the means of resamples."""
    draw = random.Random(seed)  # noqa: S311
    means = sorted(mean(draw.choices(values, k=len(values))) for _ in range(resamples))
    return [means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]]
