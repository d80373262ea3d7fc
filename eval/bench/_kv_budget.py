"""What stays faithful when only a part of a prompt's keys and values is kept, budget by budget, for `rag bench kv`.

Every prompt is prefilled once, with the votes that all budgets need; each budget then cuts a copy of that cache. What
is compared are the distributions over the tokens that the whole cache writes, the log-likelihood of the gold answer,
and whether a number hidden among the passages (the needle) is still found.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from eval.bench._kv_prompts import Corpus, KvCase, Loaded, kv_cases
from eval.bench._kv_reuse import interval
from eval.bench._report import table

if TYPE_CHECKING:
    from torch import Tensor

    from rag.engine.attend import WindowVotes
    from rag.engine.budget import KvBudget
    from rag.engine.cache import KvCache
    from rag.engine.prefill import Prefill

__all__ = ["Asked", "asked_cases", "budget", "budget_part", "budget_summary", "budget_table", "needles"]

FORCED = 32
SHARES = (0.5, 0.25)
WINDOW = 32
"""The prompt's last tokens whose votes are kept apart: snapkv's, ems's and critic's window."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt and the ids of its gold answer, where that is known."""

    case: KvCase
    gold: Sequence[int] = ()


def budgets(tokens: int) -> dict[str, KvBudget]:
    """Every budget at `tokens`, its other parameters as they are by default."""
    from rag.engine.budget.critic import Critic
    from rag.engine.budget.d2o import D2o
    from rag.engine.budget.ems import Ems
    from rag.engine.budget.prefixkv import PrefixKv
    from rag.engine.budget.sink_recent import SinkRecent
    from rag.engine.budget.snapkv import SnapKv

    return {
        "sink-recent": SinkRecent(budget=tokens),
        "snapkv": SnapKv(budget=tokens, window=WINDOW),
        "prefixkv": PrefixKv(budget=tokens),
        "prefixkv, last 32": PrefixKv(budget=tokens, protect_size=WINDOW),
        "ems": Ems(budget=tokens, window=WINDOW),
        "ems, evict only": Ems(budget=tokens, window=WINDOW, tau=2.0),
        "d2o": D2o(budget=tokens),
        "critic": Critic(budget=tokens, window=WINDOW),
    }


def budget_part(
    loaded: Loaded,
    found: Sequence[Corpus],
    data: Path | None,
    *,
    lengths: Sequence[int],
    count: int,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """For every length of context: figures over `count` questions, half of each set, and over as many needles."""
    parts = []
    for length in lengths:
        asked: list[Asked] = []
        for number, corpus in enumerate(found):
            wanted = count // len(found) + (number < count % len(found))
            asked += asked_cases(loaded, corpus, data, tokens=length, count=wanted, seed=seed)
        tell(f"budgets: {len(asked)} prompts of about {length} tokens")
        rows = budget(loaded, asked, seed=seed, tell=tell)
        tell(f"budgets: {len(asked)} needles in about {length} tokens")
        hidden = budget(loaded, needles(loaded, asked, seed=seed), seed=seed, tell=tell)
        parts.append(
            {"length": length, "policies": budget_summary(rows, hidden, seed=seed), "rows": rows, "needles": hidden}
        )
    return parts


def asked_cases(
    loaded: Loaded, corpus: Corpus, data: Path | None, *, tokens: int, count: int, seed: int
) -> list[Asked]:
    """`count` questions of `corpus`, drawn by `seed`, with their gold answers where `data` has them."""
    golds = _golds(data, corpus.name)
    draw = random.Random(seed)  # noqa: S311
    drawn = draw.sample(list(corpus.questions), min(count, len(corpus.questions)))
    found = []
    for number, one in enumerate(drawn):
        alone = replace(corpus, questions=[one])
        (case,) = kv_cases(loaded, alone, tokens=tokens, count=1, seed=seed + number)
        found.append(Asked(case=case, gold=loaded.encode(golds[one[0]]) if one[0] in golds else ()))
    return found


def _golds(data: Path | None, name: str) -> dict[str, str]:
    """The first answer of every question of the development half."""
    if data is None or not (data / name).is_dir():
        return {}
    from eval.chunks.data import half_of
    from eval.sets import read_rows

    rows = read_rows(data / name / "queries.jsonl")
    return {row["text"]: row["answers"][0] for row in rows if half_of(row["query_id"]) == "dev" and row.get("answers")}


def needles(loaded: Loaded, asked: Sequence[Asked], *, seed: int) -> list[Asked]:
    """The same passages with a number hidden among them, and a question for it; its digits are the gold answer."""
    found = []
    for number, one in enumerate(asked):
        draw = random.Random(seed + number)  # noqa: S311
        code = str(draw.randrange(10_000, 100_000))
        hidden = loaded.encode(
            f"\n<document>\nSource: notes\nThe access code of the north gate is {code}.\n</document>\n"
        )
        at = draw.randrange(len(one.case.chunks) + 1)
        chunks = [*one.case.chunks[:at], hidden, *one.case.chunks[at:]]
        tail = loaded.encode("\nQuestion: What is the access code of the north gate?\n") + loaded.encode(loaded.after)
        start = loaded.encode("The access code of the north gate is")
        case = KvCase(prefix=one.case.prefix, chunks=chunks, tail=[*tail, *start])
        found.append(Asked(case=case, gold=loaded.encode(f" {code}")))
    return found


def budget(
    loaded: Loaded,
    cases: Sequence[Asked],
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """A row for every prompt, share of its tokens that is kept, and policy: kl, first_kl, agreement, kept (share of all
    slots), seconds to choose and cut, gold (change of its mean log-likelihood) and found (all its tokens most likely).

    "whole" is the cache as it is: its gold is the log-likelihood itself, and its seconds those of the prefill.
    """
    from rag.engine.budget import observed_prefill
    from rag.engine.decode import generate
    from rag.engine.measure import divergence, forced_logits

    model = loaded.model
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(cases):
        ids = one.case.ids
        if number % 10 == 0:
            tell(f"prompt {number + 1} of {len(cases)}: {len(ids)} tokens")
        begin = time.process_time()
        done, votes = observed_prefill(model, ids, window=WINDOW, whole=True)
        spent = time.process_time() - begin
        keys, values = done.cache.read(0, len(ids))
        answer = list(generate(model, done.cache, done.logits, max_new_tokens=FORCED))
        done.cache.truncate(len(ids))
        reference = forced_logits(model, done.cache, done.logits, answer)
        done.cache.truncate(len(ids))
        likely, found = _gold(loaded, done, len(ids), one.gold)
        head = {"prompt": number, "tokens": len(ids)}
        rows.append(head | {"policy": "whole", "share": 1.0, "seconds": spent, "gold": likely, "found": found})
        runs = [(share, name, how) for share in shares for name, how in budgets(int(share * len(ids))).items()]
        for share, name, how in random.Random(seed + number).sample(runs, len(runs)):  # noqa: S311
            cache = model.new_cache(len(ids))
            cache.append(keys, values)
            cut, seconds = _cut(done, cache, how, votes)
            kept = sum(layer.length for layer in cache.kv_layers) / (model.layers * len(ids))
            ours, right = _gold(loaded, cut, cache.length, one.gold)
            told = divergence(reference, forced_logits(model, cache, cut.logits, answer))
            rows.append(
                head
                | {
                    "policy": name, "share": share, "kept": kept, "seconds": seconds, "kl": told.kl,
                    "first_kl": told.first_kl, "agreement": told.agreement, "found": right,
                    "gold": None if ours is None or likely is None else ours - likely,
                }
            )  # fmt: skip
    return rows


def _cut(done: Prefill, cache: KvCache, how: KvBudget, votes: WindowVotes) -> tuple[Prefill, float]:
    from rag.engine.budget import shrink

    begin = time.process_time()
    shrink(cache, how, votes)
    return replace(done, cache=cache), time.process_time() - begin


def _gold(loaded: Loaded, done: Prefill, length: int, gold: Sequence[int]) -> tuple[float, bool] | tuple[None, None]:
    """Mean log-likelihood of the gold tokens behind the first `length` slots, and whether each is the most likely; the
    cache is left at that length."""
    from rag.engine.measure import forced_logits

    if not gold:
        return None, None
    rows: Tensor = forced_logits(loaded.model, done.cache, done.logits, gold)
    done.cache.truncate(length)
    picked = [float(row.log_softmax(-1)[token]) for row, token in zip(rows, gold, strict=True)]
    return mean(picked), rows.argmax(-1).tolist() == list(gold)


# ---------------------------------------------------------------------- figures


def budget_summary(
    rows: Sequence[Mapping[str, Any]], hidden: Sequence[Mapping[str, Any]] = (), *, seed: int = 0
) -> list[dict[str, Any]]:
    """For every share and policy: means over the prompts with 95 % bootstrap intervals; `needle` is the share of the
    needles found."""
    found = []
    for share, name in dict.fromkeys((row["share"], row["policy"]) for row in rows):
        own = [row for row in rows if (row["share"], row["policy"]) == (share, name)]
        lost = [bool(row["found"]) for row in hidden if (row["share"], row["policy"]) == (share, name)]
        golds = [float(row["gold"]) for row in own if row["gold"] is not None]
        one: dict[str, Any] = {"policy": name, "share": share, "prompts": len(own)}
        one["seconds"] = median(row["seconds"] for row in own)
        one["gold"] = mean(golds) if golds else None
        one["needle"] = mean(lost) if lost else None
        for key in ("kept", "kl", "agreement", "first_kl"):
            if "kl" in own[0]:
                one[key] = mean(row[key] for row in own)
        if "kl" in one:
            one["kl_interval"] = interval([float(row["kl"]) for row in own], seed=seed)
        found.append(one)
    return sorted(found, key=lambda one: (-one["share"], one.get("kl", 0.0)))


def budget_table(part: Mapping[str, Any]) -> str:
    keys = ("share", "prompts", "kept", "kl", "agreement", "gold", "needle", "seconds")
    rows = [
        [one["policy"], *("" if one.get(key) is None else f"{one[key]:.3f}" for key in keys)]
        for one in part["policies"]
    ]
    return table([f"{part['length']} tokens", *keys], rows)
