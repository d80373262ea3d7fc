"""`rag bench kv`: what reuse of keys and values saves and how far it strays from computing everything.

Parts, each of which can run alone:

    exact        in float32, the tokens of every exact mode against full prefill and plain greedy decoding
    reuse        repair policies and exact prefix hits: cost and divergence, over questions of the public sets
    load         a block from disk against computing it
    budget       what of a prompt stays when bytes are limited: divergence, gold answers and needles
    batch        16 questions over one context, together and each alone
    speculation  tokens a second with drafts, where the answer copies the prompt and where it does not

`python -m eval.bench.kv` has options for parts, lengths and the number of questions. `auto` takes the cheapest policy
under the bounds as measured on one half of the contexts; its figures are those of the other half. `--calibrate FILE`
writes the table that the repair `auto` of the generator `local` reads.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.bench._kv_budget import budget_part
from eval.bench._kv_prompts import (
    SETS,
    Corpus,
    KvCase,
    Loaded,
    Near,
    Rank,
    by_relevance,
    corpora,
    donors_of,
    kv_cases,
    load,
    neighbours_of,
    passages,
)
from eval.bench._kv_recipes import LOCAL, REPAIRS
from eval.bench._kv_report import AGREEMENT, BOUND, claims_of, tables
from eval.bench._kv_reuse import PREFIX_HIT, measure, summary
from eval.bench._kv_speed import batch, exact, load_costs, speculation
from eval.bench._report import Settings, load_average, machine
from rag.errors import UsageError
from rag.generators._calibration import write_calibration

__all__ = ["PARTS", "run"]

PARTS = ("exact", "reuse", "load", "budget", "batch", "speculation")
LENGTHS = (1000, 2000)
QUESTIONS = 8
DONORS = 4
DONOR_TOKENS = 500
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class ReuseSettings:
    """Of the part reuse. `policies` run on the `first` contexts of each set, `everywhere` on all of them, which are no
    more than `contexts`.

    With `together` as many questions share a context as it has thousands of tokens, about what came with each. Passages
    stand by `order`: relevance, as a pipeline lays them out (of several questions the nearest counts), or chance.
    `rows` is a folder that keeps finished contexts and blocks, so that a run can go on. `near` finds a passage's
    neighbours; None does so by the vectors of MiniLM.
    """

    half: str = "dev"
    sets: Sequence[str] = ()
    policies: Sequence[str] | None = None
    everywhere: Sequence[str] = ()
    first: int | None = None
    order: str = "chance"
    together: bool = False
    contexts: int | None = None
    rows: Path | None = None
    near: Near | None = None


def run(
    settings: Settings,
    *,
    parts: Sequence[str] = PARTS,
    lengths: Sequence[int] = LENGTHS,
    questions: int = QUESTIONS,
    reuse: ReuseSettings = ReuseSettings(),  # frozen
    calibrate: Path | None = None,
    loaded: Loaded | None = None,
) -> dict[str, Any]:
    """The report. `questions` is the number of prompts of every length, half of them from each set. `calibrate` is a
    file for the table that the part reuse makes."""
    import torch

    if unknown := sorted(set(parts) - set(PARTS)):
        raise UsageError(f"kv: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if calibrate is not None and "reuse" not in parts:
        raise UsageError("kv: --calibrate needs the part reuse")
    torch.set_num_threads(settings.threads)
    found, started = _sets(settings, reuse), load_average()
    model = load() if loaded is None else loaded
    report: dict[str, Any] = {"bench": "kv", "model": _model(model), "sets": [one.name for one in found]}
    report["donor_sets"] = (
        "the other set, without documents of this one" if found[0].name in SETS else "other documents"
    )
    if "exact" in parts:
        wide = load("float32") if loaded is None else model
        cases = _cases(wide, found, min(lengths), min(questions, 4), settings.seed)
        report["exact"] = exact(wide, [case for _, case in cases])
    if "reuse" in parts:
        report["reuse"] = [_reuse(model, found, length, questions, reuse, settings) for length in lengths]
    if "load" in parts:
        ids = _cases(model, found, 2000, 1, settings.seed)[0][1].ids
        report["load"] = load_costs(model, ids, lengths=(256, 512, 1024), rounds=settings.rounds)
    if "budget" in parts:
        report["budget"] = budget_part(
            model, found, settings.data or _beside(), lengths=lengths, count=questions, seed=settings.seed,
            tell=lambda text: _tell(settings, text),
        )  # fmt: skip
    if "batch" in parts:
        _tell(settings, f"{BATCH} questions over one context of {max(lengths)} tokens")
        case, tails = _batch_of(model, found[0], max(lengths), settings.seed)
        report["batch"] = batch(model, case, tails, rounds=settings.rounds)
    if "speculation" in parts:
        _tell(settings, "speculation")
        prompts = _written(model, found, questions, settings.seed)
        report["speculation"] = speculation(model, prompts, rounds=settings.rounds)
    report["machine"] = {
        **machine(), "threads": settings.threads, "load_before": started, "load_after": load_average(),
    }  # fmt: skip
    report["claims"] = claims_of(report)
    if calibrate is not None:
        write_calibration(calibrate, *calibration(report))
    _tell(settings, tables(report))
    return report


def _sets(settings: Settings, reuse: ReuseSettings) -> list[Corpus]:
    found = corpora(settings.data or _beside(), reuse.half)
    wanted = [one for one in found if not reuse.sets or one.name in reuse.sets]
    if not wanted:
        raise UsageError(f"kv: no set {', '.join(reuse.sets)}; there are {', '.join(one.name for one in found)}")
    return wanted


def _beside() -> Path | None:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    return beside if all((beside / name).is_dir() for name in SETS) else None


def _model(loaded: Loaded) -> dict[str, Any]:
    model = loaded.model
    return {
        "family": model.config.model_type,
        "layers": model.layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": model.fingerprint,
        "token_bytes": model.token_bytes,
    }


def _cases(
    loaded: Loaded,
    found: Sequence[Corpus],
    tokens: int,
    count: int,
    seed: int,
    together: int = 1,
    rank: Rank | None = None,
) -> list[tuple[Corpus, KvCase]]:
    """Half of them of each set, the first set's first."""
    cases: list[tuple[Corpus, KvCase]] = []
    for number, corpus in enumerate(found):
        wanted = count // len(found) + (number < count % len(found))
        if wanted:
            drawn = kv_cases(loaded, corpus, tokens=tokens, count=wanted, seed=seed, together=together, rank=rank)
            cases += [(corpus, case) for case in drawn]
    return cases


# ---------------------------------------------------------------------- parts


def _reuse(
    loaded: Loaded,
    found: Sequence[Corpus],
    length: int,
    questions: int,
    reuse: ReuseSettings,
    settings: Settings,
) -> dict[str, Any]:
    """Donors are as ingestion would take them, the same whatever the length of the context."""
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    together = max(1, length // 1000) if reuse.together else 1
    rank = by_relevance() if reuse.order == "relevance" else None
    cases = _cases(loaded, found, length, questions, settings.seed, together, rank)
    for corpus in found:
        own = [case for one, case in cases if one is corpus]
        if not own:
            continue
        _tell(settings, f"{corpus.name}: {len(own)} prompts of about {length} tokens")
        donors = donors_of(loaded, corpus, tokens=DONOR_TOKENS, count=DONORS, seed=settings.seed)
        lengths += [len(donor) for donor in donors]
        told = measure(
            loaded, own, donors, policies=reuse.policies, everywhere=reuse.everywhere, first=reuse.first,
            contexts=reuse.contexts, seed=settings.seed,
            folder=reuse.rows / "blocks" if reuse.rows else None,
            near=_near(loaded, corpus, reuse),
            rows_file=reuse.rows / f"{corpus.name}-{length}.jsonl" if reuse.rows else None,
            tell=lambda text: _tell(settings, text),
        )  # fmt: skip
        rows += [{**row, "set": corpus.name} for row in told]
    return {
        "length": length,
        "half": reuse.half,
        "questions_a_context": together,
        "order": reuse.order,
        "donors": {"count": DONORS, "tokens": lengths},
        "policies": summary(rows, seed=settings.seed),
        "common": summary(_common(rows), seed=settings.seed),
        "auto": auto(rows),
        "rows": rows,
    }


def _near(loaded: Loaded, corpus: Corpus, reuse: ReuseSettings) -> Near | None:
    """None where no policy wants neighbours, which cost a vector of every passage."""
    names = None if reuse.policies is None else {*reuse.policies, *reuse.everywhere}
    if names is not None and not any(name.startswith("near") for name in names):
        return None
    return reuse.near or neighbours_of(loaded, corpus, reuse.rows / "vectors" if reuse.rows else None)


def auto(rows: Sequence[Mapping[str, Any]], bound: float = BOUND, floor: float = AGREEMENT) -> dict[str, Any]:
    """The cheapest policy within `bound` and `floor` ("all" is full prefill, where there is none): `calibrated` on all
    prompts, as the repair `auto` of `local` will take it; and `chosen` on the even contexts for the odd ones and the
    other way round, whose `figures` are those of contexts that had no say. `table` is the calibration from all of them.

    Methods of papers that ran on fewer contexts are no candidates: a choice compares what saw the same prompts.
    """
    chosen: list[str] = []
    judged: list[Mapping[str, Any]] = []
    for half in (0, 1):
        chosen.append(_cheapest([row for row in rows if _context(row) % 2 == half], bound, floor))
        judged += _judged([row for row in rows if _context(row) % 2 != half], chosen[-1])
    best = _cheapest(rows, bound, floor)
    columns = ("policy", "tokens", "cost", "kl", "agreement", "prompts")
    table = [{key: one[key] for key in columns} for one in summary(rows) if one["policy"] != PREFIX_HIT]
    return {
        "bound": bound, "floor": floor, "chosen": chosen, "figures": _as_auto(judged),
        "calibrated": {"policy": best, "figures": _as_auto(_judged(rows, best))}, "table": table,
    }  # fmt: skip


def _cheapest(rows: Sequence[Mapping[str, Any]], bound: float, floor: float) -> str:
    told = [one for one in summary(rows) if one["policy"] != PREFIX_HIT]
    most = max((one["prompts"] for one in told), default=0)
    fits = [one for one in told if one["prompts"] == most and one["kl"] <= bound and one["agreement"] >= floor]
    return str(min(fits, key=lambda one: float(one["cost"]))["policy"]) if fits else "all"


def _judged(rows: Sequence[Mapping[str, Any]], policy: str) -> list[Mapping[str, Any]]:
    """The rows of a policy; those of full prefill are as it is by definition."""
    if policy != "all":
        return [row for row in rows if row["policy"] == policy]
    full = {"cost": 1.0, "of_own": 1.0, "kl": 0.0, "first_kl": 0.0, "agreement": 1.0, "repaired": 0}
    return [{**row, **full} for row in rows if row["policy"] == PREFIX_HIT]


def _as_auto(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    return summary([{**row, "policy": "auto"} for row in rows])[0] if rows else None


def calibration(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the repair `auto` of `local` reads, a table for each kind of blocks: of the policies it knows those that
    saw all prompts of a length."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in report["reuse"]:
        table = [row for row in part["auto"]["table"] if row["policy"] in REPAIRS]
        for row in table:
            kind = row["policy"].split("+")[0]
            if row["prompts"] == max(one["prompts"] for one in table):
                figures = {key: row[key] for key in ("tokens", "cost", "kl", "agreement")}
                rows.setdefault(kind, []).append({**figures, "policy": REPAIRS[row["policy"]]})
    model = report["model"]
    return [
        {
            "fingerprint": model["fingerprint"],
            "blocks": LOCAL[kind],
            "model": f"{model['family']}, {model['layers']} layers, {model['dtype']}",
            "measured": f"rag bench kv, {', '.join(report['sets'])}",
            "rows": own,
        }
        for kind, own in rows.items()
    ]


def _common(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the contexts on which every policy ran: only there methods can be compared."""
    names = {row["policy"] for row in rows}
    ran: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        ran.setdefault((row["set"], _context(row)), set()).add(row["policy"])
    return [row for row in rows if ran[row["set"], _context(row)] == names]


def _context(row: Mapping[str, Any]) -> int:
    return int(row.get("context", row["prompt"]))


def _batch_of(loaded: Loaded, corpus: Corpus, tokens: int, seed: int) -> tuple[KvCase, list[list[int]]]:
    case = kv_cases(loaded, corpus, tokens=tokens, count=1, seed=seed)[0]
    asked = [question for question, _ in corpus.questions]
    drawn = [asked[number % len(asked)] for number in range(BATCH)]
    return case, [loaded.encode(f"\nQuestion: {one}\n") + loaded.encode(loaded.after) for one in drawn]


def _written(loaded: Loaded, found: Sequence[Corpus], count: int, seed: int) -> list[tuple[str, list[int]]]:
    """Prompts whose answer copies a passage (its first words are put into the model's mouth), and questions."""
    prompts: list[tuple[str, list[int]]] = []
    draw = random.Random(seed)  # noqa: S311
    for corpus, case in _cases(loaded, found, 500, count, seed):
        prompts.append(("other", case.ids))
        texts = [pair for pair in corpus.texts.values() if 300 < len(pair[1]) < 900] or [*corpus.texts.values()]
        title, text = draw.choice(texts)
        (passage,) = passages(loaded, [(title, text)], 500)
        order = loaded.encode(f"\nRepeat the text of the document with the source {title}, word for word.\n")
        start = loaded.encode(" ".join(text.split()[:8]))
        chunks = [*case.chunks, passage]
        tail = [*order, *loaded.encode(loaded.after), *start]
        prompts.append(("copy", KvCase(prefix=case.prefix, chunks=chunks, tail=tail).ids))
    return prompts


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)


def _main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes.")],
    data: Annotated[Path | None, typer.Option("--data", envvar="CHUNKWISE_DATA")] = None,
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}, with commas between.")] = ",".join(PARTS),
    lengths: Annotated[str, typer.Option(help="Tokens of context, with commas between.")] = "1000,2000",
    questions: Annotated[int, typer.Option(min=1, help="Prompts of every length.")] = QUESTIONS,
    sets: Annotated[str, typer.Option(help="Of the public sets, with commas between; all by default.")] = "",
    half: Annotated[str, typer.Option(help="Of the questions: dev, test or all.")] = "dev",
    policies: Annotated[str, typer.Option(help="Of the part reuse, with commas between; all by default.")] = "",
    everywhere: Annotated[str, typer.Option(help="Policies that run on all contexts, with commas between.")] = "",
    first: Annotated[int | None, typer.Option(min=1, help="Contexts of each set for all other policies.")] = None,
    order: Annotated[str, typer.Option(help="Of the passages: relevance or chance.")] = "relevance",
    together: Annotated[bool, typer.Option(help="Questions share contexts of 2,000 tokens and more.")] = False,
    contexts: Annotated[int | None, typer.Option(min=1, help="Of each set, no more.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Folder that keeps finished contexts and blocks.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    calibrate: Annotated[Path | None, typer.Option(help="Where the table for the repair auto goes.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    settings = Settings(data=data, rounds=rounds, seed=seed, threads=threads)
    numbers = [int(one) for one in lengths.split(",")]
    reuse = ReuseSettings(
        half=half,
        sets=sets.split(",") if sets else (),
        policies=policies.split(",") if policies else None,
        everywhere=everywhere.split(",") if everywhere else (),
        first=first,
        order=order,
        together=together,
        contexts=contexts,
        rows=rows,
    )
    if rows is not None:
        rows.mkdir(parents=True, exist_ok=True)
    report = run(
        settings, parts=parts.split(","), lengths=numbers, questions=questions, reuse=reuse, calibrate=calibrate
    )
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(_main)
