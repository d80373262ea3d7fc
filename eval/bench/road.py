"""`rag bench road`: fewer tokens against KV reuse, over the whole road from hits to the first token.

Every question goes along every way, in an order that chance makes anew: whole chunks computed; whole chunks whose KV is
kept, half kept or not kept; sentences kept and computed; sentences kept whose KV is what is left of the whole chunk's
(`cut_pieces: prune`); pieces that no question changes, computed or kept as blocks of their own, which `local` does not
do. Questions are of the development halves, and their answer stands in the chunks. The rule at the end is
`eval.bench._road_rule.choose` on the medians.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.bench._kv_reuse import interval
from eval.bench._report import Settings, claim, load_average, machine, table
from eval.bench._road_contexts import asked_of, pipeline_of, roads
from eval.bench._road_rule import Way, advice, choose, seconds, threshold
from eval.bench._road_ways import FULL, REPAIRED, Reader, take, ways_of

if TYPE_CHECKING:
    from rag.generators.local import LocalGenerator

__all__ = ["figures", "run", "summary", "ways_of_rule"]

RATES = (0.5, 0.25)
QUESTIONS = 24
LENGTH = 640
BOUND = 0.1
"""Nats a token of the answer that a way of the rule may lose."""


def run(
    settings: Settings,
    *,
    questions: int = QUESTIONS,
    lengths: Sequence[int] = (LENGTH,),
    generator: LocalGenerator | None = None,
) -> dict[str, Any]:
    """The report. `questions` are drawn of every set, and those without their answer in the chunks left out; the first
    of `lengths` is the budget of a context in tokens. `generator` is the bundled model where it is not given."""
    import torch

    from rag.generators.local import LocalGenerator
    from rag.registry import build

    torch.set_num_threads(settings.threads)
    started, pipeline = load_average(), pipeline_of(settings)
    base = generator or LocalGenerator(lead="Answer:")
    reader, ways = Reader(base), ways_of(RATES)
    services = {"counter": base.counter, "embedder": pipeline.embedder}
    compressors = {
        f"{name} {rate}": build("compressor", {"use": name, "rate": rate}, services=services)
        for name in ("sentence-prune", "stable-prune")
        for rate in RATES
    }
    rows: list[dict[str, Any]] = []
    for name, asked in asked_of(settings, questions).items():
        with roads(pipeline, name, asked, lengths[0], base.counter) as (index, found):
            for number, road in enumerate(found):
                _tell(settings, f"{name}: question {number + 1} of {len(found)}, {road.bubble.token_count} tokens")
                draw = random.Random(settings.seed + number)  # noqa: S311
                told = take(reader, road, index.corpus, compressors, ways, draw)
                rows += [{"set": name, "question": f"{name} {number}", **row} for row in told]
    report = {
        "bench": "road",
        "machine": {**machine(), "threads": settings.threads, "load_before": started, "load_after": load_average()},
        "model": {"dtype": str(reader.by_name["solo"]._decoder.required.dtype).removeprefix("torch.")},
        "embedder": pipeline.embedder.fingerprint,
        **figures(rows, seed=settings.seed),
        "rows": rows,
    }
    _tell(settings, _table(report))
    return report


# ---------------------------------------------------------------------- figures


def figures(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """All of the report that follows from its rows."""
    results = summary(rows, seed=seed)
    options = ways_of_rule(results)
    return {
        "questions": len({row["question"] for row in rows}),
        "results": results,
        "rule": _rule(options),
        "claims": _claims(results, options),
    }


def summary(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """For every way medians of seconds and tokens, and means of what it loses against FULL on the same questions, with
    95 % paired bootstrap intervals."""
    full = {row["question"]: row for row in rows if row["way"] == FULL}
    found = []
    for name in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == name]
        lost = [full[row["question"]]["logp"] - row["logp"] for row in own]
        parts = [row["seconds"] / full[row["question"]]["seconds"] for row in own]
        found.append(
            {
                "way": name,
                "questions": len(own),
                **{key: median(row[key] for row in own) for key in ("seconds", "compress_seconds", "prompt", "left")},
                "of_full": median(parts),
                "logp": mean(row["logp"] for row in own),
                "lost": mean(lost),
                "lost_interval": interval(lost, seed=seed),
                **_against_computed(name, own, rows, seed),
                "first_kl": mean(row["kl"] for row in own),
                "same_top": mean(float(row["same"]) for row in own),
            }
        )
    return found


def _against_computed(
    name: str, own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """What KV pruning loses against computing the same shortened text; nothing for other ways."""
    prune, _, reading = name.partition(", KV pruning, ")
    if not reading:
        return {}
    computed = {row["question"]: row["logp"] for row in rows if row["way"] == f"{prune}, computed"}
    lost = [computed[row["question"]] - row["logp"] for row in own]
    return {"lost_to_computed": mean(lost), "lost_to_computed_interval": interval(lost, seed=seed)}


def ways_of_rule(results: Sequence[Mapping[str, Any]]) -> list[Way]:
    """What `local` does by default, and with chunk reuse and its default repair. Making blocks costs what the cold way
    of the whole chunks costs more than the warm one: the blocks of a pruned chunk are those of the whole."""
    by_name = {one["way"]: one for one in results}
    cold, warm = (by_name[f"whole, {REPAIRED}{store}"]["seconds"] for store in (", cold", ""))
    pruned = [f"sentence-prune {rate}" for rate in RATES]
    return [
        Way(name, by_name[name]["seconds"], make, by_name[name]["lost"])
        for name, make in [
            *((name, 0.0) for name in (FULL, *(f"{one}, computed" for one in pruned))),
            *(
                (name, max(0.0, cold - warm))
                for name in (f"whole, {REPAIRED}", *(f"{one}, KV pruning, {REPAIRED}" for one in pruned))
            ),
        ]
    ]


def _rule(options: Sequence[Way]) -> dict[str, Any]:
    """Lines for people, at BOUND and without a bound, and the shares of kept chunks from which reuse pays."""
    by_name = {way.name: way for way in options}
    lines = []
    for name in (f"whole, {REPAIRED}", *(f"sentence-prune {rate}, KV pruning, {REPAIRED}" for rate in RATES)):
        for other in (FULL, *(f"sentence-prune {rate}, computed" for rate in RATES)):
            share = threshold(by_name[name], seconds(by_name[other], 0.0))
            told = "at no share of kept chunks" if share is None else f"from {share:.0%} of the chunks kept on"
            lines.append(f"{name} costs no more than {other} {told}")
    return {"bound": BOUND, "advice": advice(options, BOUND), "fastest": advice(options, float("inf")), "even": lines}


def _claims(results: Sequence[Mapping[str, Any]], options: Sequence[Way]) -> list[dict[str, Any]]:
    by_name = {one["way"]: one for one in results}
    claims = []
    for rate in RATES:
        prune, kept = by_name[f"sentence-prune {rate}, computed"], f"sentence-prune {rate}, KV pruning, {REPAIRED}"
        part = by_name[kept]["seconds"] / prune["seconds"]
        text = f"sentence-prune {rate}, KV pruning over computing what is left"
        claims.append(claim(f"{text}: seconds", part, 1.0, "lower"))
        claims.append(claim(f"{text}: nats a token lost", by_name[kept]["lost_to_computed"], 0.0, "lower"))
    best = choose(options, 1.0, BOUND)
    part = seconds(best, 1.0) / by_name[FULL]["seconds"]
    claims.append(claim(f"all chunks kept, {best.name}: time over that of {FULL}", part, 0.5, "lower"))
    return claims


def _table(report: Mapping[str, Any]) -> str:
    keys = ("questions", "prompt", "of_full", "first_kl", "same_top")
    header = ["way", "ms", "compress ms", *(key.replace("_", " ") for key in keys), "nats lost", "from", "to"]
    rows = [
        [
            one["way"],
            round(1000 * one["seconds"]),
            round(1000 * one["compress_seconds"]),
            *(one[key] for key in keys),
            one["lost"],
            *one["lost_interval"],
        ]
        for one in report["results"]
    ]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    rule = report["rule"]
    told = [f"Within {rule['bound']} nats:", *rule["advice"], "Fastest:", *rule["fastest"], "", *rule["even"]]
    return "\n\n".join([table(header, rows), "\n".join(told), table(["claim", "value", "goal", ""], claims)])


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)


def _main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes.")],
    data: Annotated[Path | None, typer.Option("--data", envvar="CHUNKWISE_DATA")] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions of every set.")] = QUESTIONS,
    length: Annotated[int, typer.Option(min=1, help="Tokens of context.")] = LENGTH,
    seed: Annotated[int, typer.Option(help="Draws the order of the ways.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    settings = Settings(data=data, seed=seed, threads=threads)
    report = run(settings, questions=questions, lengths=[length])
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(_main)
