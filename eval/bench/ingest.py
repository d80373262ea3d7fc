"""`rag bench ingest`: folder of documents -> durable index, against LangChain, LlamaIndex and Haystack.

Everybody embeds with the same MiniLM weights on the same number of threads, in a fresh process for every round, and
the rounds are interleaved. Times are CPU seconds (user and system, children included) of chunking, embedding and
writing; imports and the loading of the model are reported beside them. Our side is the whole `Pipeline.index`.

Quality is measured in the same run: which share of the evidence characters the first chunks of a dense ranking
cover, over the full texts. Recall at 5 chunks favours large chunks, so recall within a budget of characters is there
too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from eval.bench._children import Contender, Outcome, find_pythons, interleave
from eval.bench._corpus import QuestionSet, cut_documents, make_text, read_set, write_documents
from eval.bench._quality import BUDGET, K, quality_rows
from eval.bench._report import Settings, claim, load_average, machine, medians, table
from rag.errors import RagError

__all__ = ["contenders", "run"]

DATASET = "chroma_chunking"
DOCUMENT_CHARS = 1500
_TICK = 1e-6  # seconds that a clock can tell apart
_HERE = Path(__file__).parent

# Peers get the batch size that is fastest for sentence-transformers, not its default of 32. Chunks of 1,000 characters
# per CPU second with batches of 1, 2, 4, 8, 16, 32, 64 (AMD EPYC, avx512_bf16): fp32 20.4, 20.5, 19.4, 18, 16, 14, 13;
# bf16 46, 47, 46, 45, 42, 38, 32. LlamaIndex forms its batches before anything is sorted by length, so it pays for
# padding in every batch of more than one: 2.7 CPU seconds with 1, 3.5 with 2 to 8, 3.9 with its default of 10.
_SORTED_BATCH, _UNSORTED_BATCH, _BF16_BATCH = 2, 1, 4


def contenders(config: Mapping[str, Any] | None = None) -> list[Contender]:
    """Ours first, then the peers in their best public settings, then rows for information."""
    ours = {"config": dict(config)} if config else {}
    peers = _HERE / "peers"
    best, alone = {"batch_size": _SORTED_BATCH}, {"batch_size": _UNSORTED_BATCH}
    bf16 = {"batch_size": _BF16_BATCH, "dtype": "bfloat16"}
    return [
        Contender(name="chunkwise", role="ours", module=_HERE / "_ours.py", options=ours),
        Contender(name="langchain+faiss", role="peer", module=peers / "langchain.py", options=best),
        Contender(
            name="langchain+faiss, 254 tokens",
            role="peer",
            module=peers / "langchain.py",
            options={**best, "chunk_tokens": 254},
            note="chunks as long as the model reads, counted with its tokenizer",
        ),
        Contender(name="llama-index", role="peer", module=peers / "llama_index.py", options=alone),
        Contender(name="haystack", role="peer", module=peers / "haystack.py", options=best),
        Contender(
            name="langchain+faiss, default batch",
            role="extra",
            module=peers / "langchain.py",
            note="as its documentation shows it: batches of 32",
        ),
        Contender(
            name="langchain+faiss, bf16",
            role="extra",
            module=peers / "langchain.py",
            options=bf16,
            note="bf16 weights, which a user can ask for in model_kwargs",
        ),
    ]


def run(settings: Settings, field: Iterable[Contender] | None = None) -> dict[str, Any]:
    """The report; `field` stands in for the real contenders in tests."""
    from rag.config import PipelineConfig
    from rag.embedders._files import find_folder

    config = PipelineConfig.from_yaml(settings.config) if settings.config else PipelineConfig.default()
    questions = _questions(settings.data)
    model = str(find_folder(""))
    pythons = settings.peer_pythons or (sys.executable,)
    asked = list(field if field is not None else contenders(config.to_dict()))
    _tell(settings, "looking for the peers")
    present, missing = find_pythons(asked, pythons, settings.threads)
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        speed = _ingest_rows(settings, questions, present, model, Path(folder) / "speed")
        quality = []
        if settings.quality and questions is not None:
            where = Path(folder) / "quality"
            quality = quality_rows(
                questions, present, model, where, settings.threads, lambda text: _tell(settings, text)
            )
    absent = [{"name": name, "measure": "ingest", **outcome} for name, outcome in missing.items()]
    report = {
        "bench": "ingest",
        "machine": {**machine(), "threads": settings.threads, "load_before": started, "load_after": load_average()},
        "versions": {row["name"]: row.pop("versions") for row in speed if "versions" in row},
        "seed": settings.seed,
        "corpus": questions.name if questions else "generated text (no public data found; quality not measured)",
        "config": config.to_dict(),
        "results": [*speed, *absent, *quality],
        "claims": _claims(speed, quality),
    }
    _tell(settings, _table(report))
    return report


def _questions(data: Path | None) -> QuestionSet | None:
    """The question set below `data`, by default the folder shared/data beside this checkout when there is one."""
    beside = _HERE.parents[2] / "shared" / "data"
    if data is None and not (beside / DATASET).is_dir():
        return None
    return read_set((data or beside) / DATASET)


def _documents(settings: Settings, questions: QuestionSet | None) -> dict[str, str]:
    if questions is not None:
        texts: Iterable[str] = questions.texts.values()
    else:
        from rag.sample import documents_dir

        files = sorted(documents_dir().glob("*.md"))
        words = sorted({word for path in files for word in path.read_text(encoding="utf-8").split() if word.isalpha()})
        texts = [make_text(words, 4 * settings.documents * DOCUMENT_CHARS, settings.seed)]
    return cut_documents(texts, settings.documents, DOCUMENT_CHARS, settings.seed)


# ---------------------------------------------------------------------- speed


def _ingest_rows(
    settings: Settings, questions: QuestionSet | None, present: list[Contender], model: str, folder: Path
) -> list[dict[str, Any]]:
    documents = _documents(settings, questions)
    write_documents(documents, folder)
    job = {"task": "ingest", "model": model, "documents": str(folder)}
    outcomes = interleave(
        present, job, rounds=settings.rounds, threads=settings.threads, tell=lambda text: _tell(settings, text)
    )
    rows = [_ingest_row(contender, outcomes[contender.name], len(documents)) for contender in present]
    ours = next((row for row in rows if row["role"] == "ours"), None)
    if ours is not None and ours["status"] != "ok":
        raise RagError(f"our own ingestion failed, so there is nothing to compare: {ours['reason']}")
    for row in rows:
        if ours is not None and row is not ours and row["status"] == "ok":
            name = "documents_per_cpu_second"
            ratios = [a[name] / b[name] for a, b in zip(ours["rounds"], row["rounds"], strict=True)]
            row["ours_over_this"] = {"rounds": ratios, "median": median(ratios)}
    return rows


def _ingest_row(contender: Contender, outcomes: list[Outcome], documents: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": contender.name,
        "measure": "ingest",
        "role": contender.role,
        "note": contender.note,
        "options": {name: value for name, value in contender.options.items() if name != "config"},
    }
    bad = next((outcome for outcome in outcomes if outcome["status"] != "ok"), None)
    if bad is not None:
        return {**row, "status": bad["status"], "reason": bad["reason"]}
    rounds = [
        {
            "cpu_seconds": one["work"]["cpu_seconds"],
            "wall_seconds": one["work"]["wall_seconds"],
            "documents_per_cpu_second": documents / max(one["work"]["cpu_seconds"], _TICK),
            "documents_per_wall_second": documents / max(one["work"]["wall_seconds"], _TICK),
            "import_cpu_seconds": one["imports"]["cpu_seconds"],
            "load_cpu_seconds": one["load"]["cpu_seconds"],
            "peak_rss_mb": one["peak_rss_mb"],
            "disk_bytes": one["disk_bytes"],
            "chunks": one["chunks"],
        }
        for one in outcomes
    ]
    same = {"status": "ok", "documents": documents, "chunks": rounds[0]["chunks"]}
    return {**row, **same, "rounds": rounds, "median": medians(rounds), "versions": outcomes[0]["versions"]}


# ---------------------------------------------------------------------- claims and table


def _claims(speed: list[dict[str, Any]], quality: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*_speed_claims(speed), *_quality_claims(quality)]


def _speed_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Against the best peer; and against those that a user sped up with bf16, as we do without being asked."""
    what = "documents per CPU second over"
    measured = [row for row in rows if "ours_over_this" in row]
    best = min(
        (row for row in measured if row["role"] == "peer"),
        key=lambda row: row["ours_over_this"]["median"],
        default=None,
    )
    if best is None:
        return [claim(f"{what} the best peer", None, 2.5, "higher")]
    return [
        claim(f"{what} the best peer ({best['name']})", best["ours_over_this"]["median"], 2.5, "higher"),
        *(
            claim(f"{what} {row['name']}", row["ours_over_this"]["median"], 1.0, "higher")
            for row in measured
            if row["options"].get("dtype")
        ),
    ]


def _quality_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scored = [row for row in rows if row["status"] == "ok"]
    best = max((row for row in scored if row["role"] == "peer"), key=lambda row: row["recall"], default=None)
    claims = []
    for row in (row for row in scored if row["role"] == "ours"):
        text = f"recall@{K}, {row['ranking']} ranking, at least that of the best peer"
        if best is None:
            claims.append(claim(text, None, 0.0, "higher"))
        else:
            claims.append(claim(f"{text} ({best['name']})", row["recall"], best["recall"], "higher"))
    return claims


def _table(report: Mapping[str, Any]) -> str:
    speed = [row for row in report["results"] if row["measure"] == "ingest"]
    quality = [row for row in report["results"] if row["measure"] != "ingest" and row["status"] == "ok"]
    header = ["ingest", "docs/CPU s", "CPU s", "wall s", "chunks", "RSS MB", "disk MB", "start CPU s", "ours/this"]
    scores = [f"recall@{K} in %", "recall", "s.e.", "4000 chars", "context chars", "chunks", "not found"]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    parts = [
        table(header, [_speed_cells(row) for row in speed]),
        table(scores, [_quality_cells(row) for row in quality]),
        table(["claim", "value", "goal", ""], claims),
    ]
    return "\n\n".join(parts)


def _speed_cells(row: Mapping[str, Any]) -> list[Any]:
    if row["status"] != "ok":
        return [row["name"], row["status"], *[None] * 7]
    figures = row["median"]
    names = ("documents_per_cpu_second", "cpu_seconds", "wall_seconds", "chunks", "peak_rss_mb")
    start = figures["import_cpu_seconds"] + figures["load_cpu_seconds"]
    ratio = row.get("ours_over_this", {}).get("median")
    return [row["name"], *(figures[name] for name in names), figures["disk_bytes"] / 1e6, start, ratio]


def _quality_cells(row: Mapping[str, Any]) -> list[Any]:
    shares = (100 * row[name] for name in ("recall", "standard_error", BUDGET))
    name = f"{row['name']}, {row['ranking']}"
    return [name, *shares, row["context_characters"], row["chunks"], row["chunks_not_found"]]


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)
