"""What reuse of chunks costs and how far it strays, policy by policy, for `rag bench kv`.

All policies see the same prompts, one after the other in an order that chance makes anew for every prompt. Cost is CPU
time to the logits of the first token, with the blocks in memory, as a share of full prefill of the same prompt: by
transformers as it comes, and by our engine, which is faster on a CPU. Blocks
are made before the clock starts: that is ingestion.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from eval.bench._kv_prompts import KvCase, Loaded, Near
from eval.bench._kv_recipes import OURS, PREFIX_HIT, PUBLISHED, Blocks, Chosen, Tell, blocks_of, recipes
from rag.errors import UsageError

if TYPE_CHECKING:
    from rag.engine.blocks import KvBlock
    from rag.engine.prefill import Prefill

__all__ = ["OURS", "PREFIX_HIT", "PUBLISHED", "interval", "measure", "summary"]

FORCED = 32


def measure(
    loaded: Loaded,
    cases: Sequence[KvCase],
    donors: Sequence[Sequence[int]],
    *,
    policies: Sequence[str] | None = None,
    everywhere: Sequence[str] = (),
    first: int | None = None,
    contexts: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    near: Near | None = None,
    rows_file: Path | None = None,
    tell: Tell = lambda _: None,
) -> list[dict[str, Any]]:
    """A row for every prompt and policy: name, cost, of_own, kl, first_kl, agreement, tokens, repaired, context. `cost`
    is a share of a full prefill by transformers alone, `of_own` one of ours.

    Neighbours in `cases` that share their passages are one context, which is prefilled once. `policies` run on the
    `first` contexts, those of `everywhere` on all of them, which are no more than `contexts`. With `rows_file` contexts
    that it tells of already are not run again.
    """
    known = recipes()
    if unknown := sorted({*(policies or ()), *everywhere} - set(known)):
        raise UsageError(f"kv: no policy {', '.join(unknown)}; there are {', '.join(known)}")
    asked = {name: one for name, one in known.items() if policies is None or name in {*policies, *everywhere}}
    blocks = blocks_of(loaded, cases[0].prefix, donors, folder, near)
    groups = [list(group) for _, group in groupby(cases, key=lambda case: id(case.chunks))][:contexts]
    rows = [row for row in _told(rows_file) if row["context"] < len(groups)]
    done = {row["context"] for row in rows}
    prompt = 0
    for number, group in enumerate(groups):
        begin, prompt = prompt, prompt + len(group)
        if number in done:
            continue
        tell(f"context {number + 1} of {len(groups)}: {len(group)} prompts, {len(group[0].ids)} tokens")
        chosen = {name: one for name, one in asked.items() if name in everywhere or first is None or number < first}
        draw = random.Random(seed + number)  # noqa: S311
        new = _context(loaded, group, blocks, chosen, draw)
        new = [{**row, "context": number, "prompt": row["prompt"] + begin} for row in new]
        rows += new
        if rows_file is not None:
            with rows_file.open("a", encoding="utf-8") as out:
                out.write("".join(json.dumps(row) + "\n" for row in new))
    return rows


def _told(rows_file: Path | None) -> list[dict[str, Any]]:
    if rows_file is None or not rows_file.exists():
        return []
    return [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]


def _context(
    loaded: Loaded, cases: Sequence[KvCase], makers: Blocks, chosen: Chosen, draw: random.Random
) -> list[dict[str, Any]]:
    """Full prefill of a context and then a question costs what the two cost one after the other."""
    from rag.engine.decode import generate
    from rag.engine.measure import divergence, forced_logits
    from rag.engine.prefill import prefill

    model = loaded.model
    blocks = makers.of(cases[0], {kind for kind, _ in chosen.values()})
    context = cases[0].ids[: -len(cases[0].tail)]
    room = max(len(case.ids) for case in cases) + FORCED
    full, common = _clocked(lambda: prefill(model, context, model.new_cache(room)))
    stock = _stock(loaded, cases[0].ids)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        asked, own = _clocked(lambda ids=case.ids: prefill(model, ids, full.cache))  # type: ignore[misc]
        answer = list(generate(model, full.cache, asked.logits, max_new_tokens=FORCED))
        full.cache.truncate(len(case.ids))
        reference = forced_logits(model, full.cache, asked.logits, answer)
        full.cache.truncate(len(context))
        runs = {PREFIX_HIT: _prefix_hit(loaded, case, full)}
        runs |= {name: _reuse(loaded, case, blocks[kind], policy) for name, (kind, policy) in chosen.items()}
        for name in draw.sample(list(runs), len(runs)):
            done, seconds = _clocked(runs[name])
            told = divergence(reference, forced_logits(model, done.cache, done.logits, answer))
            rows.append(
                {
                    "prompt": number, "tokens": len(case.ids), "policy": name, "cost": seconds / stock,
                    "of_own": seconds / (common + own),
                    "kl": told.kl, "first_kl": told.first_kl, "agreement": told.agreement, "repaired": done.repaired,
                }
            )  # fmt: skip
    return rows


def _stock(loaded: Loaded, ids: Sequence[int]) -> float:
    """CPU seconds of one pass over all of `ids` by transformers as it comes."""
    import torch

    begin = time.process_time()
    with torch.no_grad():
        loaded.model.model(input_ids=torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)
    return time.process_time() - begin


def _clocked(run: Callable[[], Prefill]) -> tuple[Prefill, float]:
    begin = time.process_time()
    done = run()
    return done, time.process_time() - begin


def _prefix_hit(loaded: Loaded, case: KvCase, full: Prefill) -> Callable[[], Prefill]:
    """All but the question was asked about before."""
    from rag.engine.prefix import PrefixPool, prefill_with_prefix

    pool = PrefixPool(max_bytes=1 << 34)
    pool.store(case.ids[: -len(case.tail)], full.cache)
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


# ---------------------------------------------------------------------- figures


def summary(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """For every policy: median cost, mean KL and agreement with 95 % bootstrap intervals over the contexts."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    found = []
    for name in sorted(names):
        own = [row for row in rows if row["policy"] == name]
        contexts = [(row.get("set"), row.get("context", row["prompt"])) for row in own]
        figures = {key: [float(row[key]) for row in own] for key in ("cost", "of_own", "kl", "agreement", "first_kl")}
        found.append(
            {
                "policy": name,
                "prompts": len(own),
                "contexts": len(set(contexts)),
                "tokens": median(row["tokens"] for row in own),
                "cost": median(figures["cost"]),
                "of_own": median(figures["of_own"]),
                "kl": mean(figures["kl"]),
                "kl_interval": interval(figures["kl"], contexts, seed=seed),
                "agreement": mean(figures["agreement"]),
                "agreement_interval": interval(figures["agreement"], contexts, seed=seed),
                "first_kl": mean(figures["first_kl"]),
                "repaired": mean(row["repaired"] for row in own),
            }
        )
    return found


def interval(
    values: Sequence[float], groups: Sequence[Any] | None = None, *, seed: int = 0, resamples: int = 2000
) -> list[float]:
    """The middle 95 % of the means of resamples; values of one group are drawn together."""
    together: dict[Any, list[float]] = {}
    for at, value in enumerate(values):
        together.setdefault(at if groups is None else groups[at], []).append(value)
    sums = [(sum(own), len(own)) for own in together.values()]
    draw = random.Random(seed)  # noqa: S311
    means = []
    for _ in range(resamples):
        drawn = draw.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    return [means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]]
