"""`rag bench store`: what the stores cost, and what they lose, against Chroma, LangChain + FAISS and LlamaIndex.

All are given the same texts with the same vectors in the same batches, each through its own public interface, and
each says what an acknowledgement means for it. Measured: cost of the first ingestion, of the same again, of one
changed document and of a deletion; what kill -9 of a writer leaves, and of two writers at once; what a flipped byte
does. Our side is the whole `Pipeline.index`, which parses files and writes a full-text index too.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.bench._children import Contender, Outcome, find_pythons
from eval.bench._report import Settings, claim, load_average, machine
from eval.bench._store_corpus import DIMENSION, StoreCorpus, make_corpus
from eval.bench._store_costs import cost_rows
from eval.bench._store_flips import flip_rows
from eval.bench._store_kills import kill_rows
from eval.bench._store_table import store_table
from rag.errors import RagError, UsageError

__all__ = ["contenders", "run"]

_HERE = Path(__file__).parent
_TOKENS = 90  # a paragraph of the corpus fits, two do not


def contenders(config: Mapping[str, Any] | None = None) -> list[Contender]:
    """Ours first, then the peers, then our own line with its real encoder, for costs alone.

    `config` is that line; the store line differs in its embedder and chunk size, so that all have the same rows.
    """
    peers = _HERE / "peers"
    hashed = {
        "chunker": {"use": "recursive", "max_tokens": _TOKENS},
        "embedder": {"use": "hashing", "buckets": DIMENSION},
        "retriever": "hybrid",
    }
    ours, records = _HERE / "_store_ours.py", {"records": True}
    return [
        Contender(name="chunkwise", role="ours", module=ours, options={"config": hashed}),
        Contender(name="chroma", role="peer", module=peers / "store_chroma.py"),
        Contender(
            name="langchain+faiss",
            role="peer",
            module=peers / "store_langchain.py",
            note="add_documents: it compares nothing with what is there",
        ),
        Contender(
            name="langchain+faiss, records",
            role="peer",
            module=peers / "store_langchain.py",
            options=records,
            note="indexing API with SQLRecordManager, cleanup incremental",
        ),
        Contender(name="llama-index", role="peer", module=peers / "store_llama_index.py"),
        Contender(name="llama-index, pipeline", role="peer", module=peers / "store_llama_pipeline.py"),
        Contender(
            name="chunkwise, its encoder",
            role="extra",
            module=ours,
            options={"config": dict(config or {})},
            note="the default line with its real encoder, as users run it",
        ),
    ]


def run(settings: Settings, field: Iterable[Contender] | None = None) -> dict[str, Any]:
    """The report; `field` stands in for the real contenders in tests."""
    if not hasattr(os, "fork"):
        raise UsageError("rag bench store kills and forks processes, which this system cannot do; run it on Linux")
    asked = list(field if field is not None else contenders(_own_config(settings)))

    def tell(text: str) -> None:
        if not settings.quiet:
            print(text, file=sys.stderr, flush=True)

    tell("looking for the peers")
    present, missing = find_pythons(asked, settings.peer_pythons or (sys.executable,), settings.threads)
    corpus = make_corpus(settings.documents, settings.seed)
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        results = _results(settings, present, corpus, Path(folder), tell)
    report = {
        "bench": "store",
        "machine": {**machine(), "threads": settings.threads, "load_before": started, "load_after": load_average()},
        "versions": {row["name"]: row.pop("versions") for row in results if "versions" in row},
        "seed": settings.seed,
        "corpus": f"generated: {settings.documents} documents of four paragraphs, {DIMENSION}-d hashed vectors",
        "settings": {one.name: _declared(one) for one in present},
        "results": [*results, *_missing_rows(missing)],
    }
    report["claims"] = _claims(results)
    tell(store_table(report))
    return report


def _results(
    settings: Settings, present: list[Contender], corpus: StoreCorpus, folder: Path, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    threads, seed = settings.threads, settings.seed
    costs = cost_rows(present, corpus, folder, rounds=settings.rounds, threads=threads, tell=tell)
    ours = next((row for row in costs if row["role"] == "ours"), None)
    if ours is not None and ours["status"] != "ok":
        raise RagError(f"our own store failed, so there is nothing to compare: {ours['reason']}")
    if not settings.kills:
        return costs
    stores = [contender for contender in present if contender.role != "extra"]
    kills = kill_rows(stores, corpus, folder, kills=settings.kills, threads=threads, seed=seed, tell=tell)
    flips = flip_rows(stores, corpus, folder, flips=settings.kills, threads=threads, seed=seed, tell=tell)
    return [*costs, *kills, *flips]


def _own_config(settings: Settings) -> dict[str, Any]:
    from rag.config import PipelineConfig

    return (PipelineConfig.from_yaml(settings.config) if settings.config else PipelineConfig.default()).to_dict()


def _missing_rows(missing: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    return [{"name": name, "measure": "costs", "role": "missing", **outcome} for name, outcome in missing.items()]


def _declared(contender: Contender) -> dict[str, Any]:
    """What the contender's file says of itself, read without importing it: its settings, what it acknowledges."""
    import ast

    found = {"options": {name: value for name, value in contender.options.items() if name != "config"}}
    for node in ast.parse(contender.module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _DECLARED:
            found[_DECLARED[node.targets[0].id]] = ast.literal_eval(node.value)
    return found


_DECLARED = {"SETTINGS": "settings", "ACKNOWLEDGED": "acknowledged"}


# ---------------------------------------------------------------------- claims


def _claims(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses over all kills of ours. Costs with our real encoder when its weights are there, as users pay them."""
    ours = [row for row in results if row["role"] == "ours" and row["status"] == "ok"]
    rows = {row["measure"]: row for row in ours}
    kills, pairs, flips = rows.get("kills", {}), rows.get("two writers", {}), rows.get("flips", {})
    lost = _sum(kills, "documents_lost", "missing_after_resume")
    claims = [
        claim(f"acknowledged documents lost in {kills.get('kills', 0)} kills and after resuming", lost, 0, "lower"),
        claim("stores that failed to open or to resume", _sum(kills, "failed_to_open", "failed_to_resume"), 0, "lower"),
        claim("documents duplicated after resuming", _sum(kills, "duplicated_after_resume"), 0, "lower"),
        claim("documents lost by two writers at once", _sum(pairs, "documents_lost", "failed_to_open"), 0, "lower"),
        claim("flipped bytes that changed answers without an error", _sum(flips, "other_answers"), 0, "lower"),
        claim("of them not found by rag verify", _sum(flips, "other_answers_and_no_word"), 0, "lower"),
    ]
    encoder = [row for row in results if row["role"] == "extra" and row["status"] == "ok"]
    costs = encoder[0] if encoder else rows.get("costs")
    figures = costs["median"] if costs else {}
    who = costs["name"] if costs else "chunkwise"
    unchanged, share = figures.get("unchanged_times_cheaper"), figures.get("changed_over_its_share")
    return [
        *(claims if any(row["measure"] == "kills" for row in results) else []),
        claim(f"unchanged re-ingest, times cheaper than the first in CPU seconds ({who})", unchanged, 50.0, "higher"),
        claim(f"one changed document over its share of the first in CPU seconds ({who})", share, 2.0, "lower"),
        claim("duplicate rows after an unchanged re-ingest", _sum(rows.get("costs"), _DUPLICATES), 0, "lower"),
        claim("stale rows after a change", _sum(rows.get("costs"), "stale_rows_after_change"), 0, "lower"),
    ]


_DUPLICATES = "duplicate_rows_after_unchanged"


def _sum(row: Mapping[str, Any] | None, *names: str) -> float | None:
    """None, which never holds, when nothing was measured."""
    return sum(row[name] for name in names) if row and all(name in row for name in names) else None
