"""`rag bench chunks`: the CPU time of cutting texts at 256 tokens, against other packages.

Everybody cuts the same texts with the same MiniLM tokenizer on one thread, in a fresh process for every round, and
the rounds are interleaved. Measured are the calls of the chunker alone, user and system time, after one call on a
short text that loads what is lazy. What a package remembers from text to text (words here, pieces of text in Chonkie
and semchunk) is part of it. No neural encoder runs: our semantic chunkers get the hashing embedder.

The peers count tokens in the fastest way that their public interface takes from the same library. Chonkie also
takes another tokenizer library, tokie, with the same vocabulary; that row is for information: it compares libraries
of tokenizers more than chunkers.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from eval.bench._children import Contender, Outcome, find_pythons
from eval.bench._chunks_run import facts, measure, run_once
from eval.bench._report import Settings, claim, load_average, machine, medians, table
from eval.sets import read_rows
from rag.errors import RagError

__all__ = ["MAX_TOKENS", "SETS", "contenders", "run"]

MAX_TOKENS = 256
SETS = ("chroma_chunking", "squad_long", "covidqa")
SET_CHARS = 1_000_000
OURS = "chunkwise recursive"
GOALS = {"chonkie": 1.0, "llama-index": 0.15}
"""Peer -> our CPU time over its own, at most."""

_TICK = 1e-6  # seconds that a clock can tell apart
_HERE = Path(__file__).parent
_OTHERS = ("sentence", "markdown", "fixed", "semantic", "cluster-semantic")


def contenders() -> list[Contender]:
    """Ours first, then the peers in their best public settings, then rows for information."""
    ours, peers = _HERE / "_chunks_ours.py", _HERE / "peers"
    chonkie, llama = peers / "chunks_chonkie.py", peers / "chunks_llama_index.py"
    rows: list[tuple[str, Any, Path, dict[str, Any], str]] = [
        (OURS, "ours", ours, {"use": "recursive"}, ""),
        ("chonkie", "peer", chonkie, {"counter": "tokenizers"}, "its own adapter"),
        ("chonkie, callable", "peer", chonkie, {"counter": "callable"}, "counts without offsets"),
        ("llama-index", "peer", llama, {"counter": "fast"}, "tokenises without offsets"),
        ("llama-index, encode", "extra", llama, {"counter": "encode"}, "the tokenizer's plain call"),
        ("llama-index, transformers", "extra", llama, {"counter": "transformers"}, "as its documentation shows it"),
        ("langchain", "peer", peers / "chunks_langchain.py", {}, "counts without offsets"),
        ("semchunk", "peer", peers / "chunks_semchunk.py", {}, "counts without offsets"),
        ("semantic-text-splitter", "peer", peers / "chunks_semantic_text_splitter.py", {}, "its own adapter"),
        ("chonkie, tokie", "extra", chonkie, {"counter": "tokie"}, "another tokenizer library, same vocabulary"),
        ("tokenised once", "extra", ours, {"use": "floor"}, "no chunker: each text tokenised whole, no offsets"),
        *((f"chunkwise {use}", "extra", ours, {"use": use}, "") for use in _OTHERS),
    ]
    return [
        Contender(name=name, role=role, module=module, options=options, note=note)
        for name, role, module, options, note in rows
    ]


def run(settings: Settings, field: Iterable[Contender] | None = None) -> dict[str, Any]:
    """The report; `field` stands in for the real contenders in tests."""
    from rag.embedders._files import find_folder
    from rag.tokens import TokenizerCounter, load_tokenizer

    tokenizer = find_folder("") / "tokenizer.json"
    counter = TokenizerCounter(load_tokenizer(tokenizer), name="minilm", limit=None, additive=True)
    corpus, texts = _texts(settings)
    _tell(settings, "looking for the peers")
    present, missing = _present(list(field) if field is not None else contenders(), settings)
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        job: dict[str, Any] = {
            "texts": str(Path(folder) / "texts.json"),
            "out": str(Path(folder) / "chunks.json"),
            "tokenizer": str(tokenizer),
            "max_tokens": MAX_TOKENS,
        }
        Path(job["texts"]).write_text(json.dumps(texts), encoding="utf-8")

        def look(contender: Contender) -> dict[str, Any]:
            return _look(
                contender, job, settings.threads, texts, lambda found: facts(texts, found, counter, MAX_TOKENS)
            )

        rows = _rows(present, job, settings, look)
    report = {
        "bench": "chunks",
        "machine": {**machine(), "threads": settings.threads, "load_before": started, "load_after": load_average()},
        "versions": {row["name"]: row.pop("versions") for row in rows if "versions" in row},
        "seed": settings.seed,
        "corpus": corpus,
        "max_tokens": MAX_TOKENS,
        "results": [*rows, *({"name": name, "measure": "chunks", **outcome} for name, outcome in missing.items())],
        "claims": _claims(rows),
    }
    _tell(settings, _table(report))
    return report


def _texts(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Whole documents of every set, drawn with the seed, up to a number of characters; else the sample documents."""
    beside = _HERE.parents[2] / "shared" / "data"
    data = settings.data or (beside if beside.is_dir() else None)
    if data is None:
        from rag.sample import documents_dir

        texts = [path.read_text(encoding="utf-8") for path in sorted(documents_dir().glob("*.md"))]
        return {"sets": ["sample documents"], "documents": len(texts), "characters": sum(map(len, texts))}, texts
    texts = []
    for name in SETS:
        rows = read_rows(data / name / "corpus.jsonl")
        random.Random(settings.seed).shuffle(rows)  # noqa: S311
        room = SET_CHARS
        for row in rows[: settings.documents]:
            if len(row["text"]) <= room:
                texts.append(row["text"])
                room -= len(row["text"])
    return {"sets": list(SETS), "documents": len(texts), "characters": sum(map(len, texts))}, texts


def _present(asked: Sequence[Contender], settings: Settings) -> tuple[list[Contender], dict[str, Outcome]]:
    """Those that can be imported; chunkers of ours that are rows for information run in this interpreter too."""
    from dataclasses import replace

    own = [one for one in asked if one.module.name == "_chunks_ours.py"]
    pythons = settings.peer_pythons or (sys.executable,)
    found, missing = find_pythons([one for one in asked if one not in own], pythons, settings.threads)
    by_name = {one.name: one for one in (*found, *(replace(one, python=sys.executable) for one in own))}
    return [by_name[one.name] for one in asked if one.name in by_name], missing


# ---------------------------------------------------------------------- rows


def _look(
    contender: Contender,
    job: Mapping[str, Any],
    threads: int,
    texts: Sequence[str],
    counted: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """The facts of one contender's chunks, from a run that is not measured."""
    outcome = run_once(contender, {**job, "count": True}, threads)
    if outcome["status"] != "ok":
        return outcome
    found = json.loads(Path(job["out"]).read_text(encoding="utf-8"))
    characters = outcome["characters_tokenised"]
    share = None if characters is None else characters / max(1, sum(map(len, texts)))
    return {"status": "ok", **counted(found), "tokenised_over_text": share}


def _rows(
    present: Sequence[Contender],
    job: Mapping[str, Any],
    settings: Settings,
    look: Callable[[Contender], dict[str, Any]],
) -> list[dict[str, Any]]:
    _tell(settings, "counting")
    seen = {one.name: look(one) for one in present}
    able = [one for one in present if seen[one.name]["status"] == "ok"]
    outcomes = measure(
        able, job, rounds=settings.rounds, threads=settings.threads, tell=lambda text: _tell(settings, text)
    )
    rows = [_row(one, seen[one.name], outcomes.get(one.name, [])) for one in present]
    ours = next(row for row in rows if row["role"] == "ours")
    if ours["status"] != "ok":
        raise RagError(f"our own chunker failed, so there is nothing to compare: {ours['reason']}")
    for row in rows:
        if row is not ours and row["status"] == "ok":
            pairs = zip(ours["rounds"], row["rounds"], strict=True)
            ratios = [a["cpu_seconds"] / max(b["cpu_seconds"], _TICK) for a, b in pairs]
            row["ours_over_this"] = {"rounds": ratios, "median": median(ratios), "range": [min(ratios), max(ratios)]}
    return rows


def _row(contender: Contender, seen: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    row = {
        "name": contender.name,
        "measure": "chunks",
        "role": contender.role,
        "note": contender.note,
        "options": dict(contender.options),
    }
    bad = next((one for one in (seen, *outcomes) if one["status"] != "ok"), None)
    if bad is not None:
        return {**row, "status": bad["status"], "reason": bad["reason"]}
    names = ("cpu_seconds", "wall_seconds", "peak_rss_mb")
    rounds = [{name: one[name] for name in names} for one in outcomes]
    return {**row, **seen, "rounds": rounds, "median": medians(rounds), "versions": outcomes[0]["versions"]}


# ---------------------------------------------------------------------- claims and table


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Against the cheapest way to use each peer; and the limits and places of our own chunks."""
    ours = next(row for row in rows if row["role"] == "ours")
    claims = []
    for peer, goal in GOALS.items():
        ratios = {
            row["name"]: row["ours_over_this"]["median"]
            for row in rows
            if row["role"] == "peer" and row["name"].partition(",")[0] == peer and "ours_over_this" in row
        }
        name = max(ratios, key=lambda name: ratios[name], default=peer)
        claims.append(claim(f"CPU time of our recursive chunker over {name}", ratios.get(name), goal, "lower"))
    return [
        *claims,
        claim("chunks of ours over the limit", ours["over_limit"], 0, "lower"),
        claim("chunks of ours that are not where they say", ours["inexact_offsets"], 0, "lower"),
    ]


def _table(report: Mapping[str, Any]) -> str:
    header = ["chunks", "CPU s", "ours/this", "range", "chunks", "tokens", "over", "inexact", "lossless", "tokenised"]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    parts = [
        table(header, [_cells(row) for row in report["results"]]),
        table(["claim", "value", "goal", ""], claims),
    ]
    return "\n\n".join(parts)


def _cells(row: Mapping[str, Any]) -> list[Any]:
    if row["status"] != "ok":
        return [row["name"], row["status"], *[None] * 8]
    ratio = row.get("ours_over_this")
    spread = "-".join(f"{value:.2f}" for value in ratio["range"]) if ratio else None
    names = ("chunks", "mean_tokens", "over_limit", "inexact_offsets", "lossless_texts", "tokenised_over_text")
    cpu, over = row["median"]["cpu_seconds"], ratio["median"] if ratio else None
    return [row["name"], cpu, over, spread, *(row[name] for name in names)]


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)
