"""`rag bench select`: the CPU time of choosing a context from 100 hits, beyond scoring them, and the work behind it.

The hits are those of the hybrid retriever for the questions of chroma_chunking (without the data: of the sample
corpus), on chunks of 200 tokens in one index. All selectors see the same hits; the order changes from round to round.
Times are CPU times of one thread, on an open index: every question was selected for once before, so that sentence
borders are found, words are known to the tokenizer and sentences have their vectors. What a vector of a sentence took
in that first pass is under `embedding`; it is scoring too, but no part of `total_ms`.

A selection has three parts (`_select_parts`): `units_ms`, `scoring_ms` and `choice_ms`. Work is counted with a counter
of tokens that knows no words yet.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from eval.bench._report import Settings, claim, load_average, machine, medians, table
from eval.bench._select_parts import CharCounter, timed, worked

if TYPE_CHECKING:
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.protocols import Embedder, Selector
    from rag.types import Hit

    Case = tuple[str, list[Hit]]

__all__ = ["GOAL_MS", "HITS", "SELECTORS", "run"]

DATA_SET = "chroma_chunking"
HITS = 100
QUESTIONS = 40
BUDGET = 800
GOAL_MS = 5.0
MCTS_SETS = 1000
SELECTORS: Mapping[str, Any] = {
    "bubble": {"use": "bubble", "budget": BUDGET},
    "mig": {"use": "mig", "budget": BUDGET},
    "top-k": {"use": "top-k", "budget": BUDGET},
    "mmr": {"use": "mmr", "budget": BUDGET},
    "mcts": {"use": "mcts", "budget": BUDGET, "evaluations": MCTS_SETS},
    "verified": {"use": "verified", "budget": BUDGET},
}
_CHUNKER = {"use": "recursive", "max_tokens": 200}
_BELOW_GOAL = ("bubble", "mig", "top-k", "mmr")
"""The others do more by design: a tree search, and signals of every hit; their times are for information."""


def run(settings: Settings, *, questions: int = QUESTIONS, selectors: Mapping[str, Any] = SELECTORS) -> dict[str, Any]:
    """The report. Vectors come from the embedder of `settings.config`, MiniLM without one."""
    from rag import Pipeline, PipelineConfig
    from rag.index import Index

    config = PipelineConfig.from_yaml(settings.config) if settings.config is not None else PipelineConfig()
    pipeline = Pipeline(
        PipelineConfig.from_dict(
            {
                "chunker": _CHUNKER,
                "embedder": config.embedder,
                "retriever": {"use": "hybrid", "k": HITS},
                "generator": config.generator,
            }
        )
    )
    name, texts, asked = _corpus(settings)
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        documents = Path(folder) / "documents"
        documents.mkdir()
        for file, text in texts.items():
            (documents / file).write_text(text, encoding="utf-8", newline="")
        _tell(settings, f"indexing {len(texts)} documents of {name}")
        pipeline.index(documents, Path(folder) / "index").close()
        with Index.open(Path(folder) / "index") as index:
            cases = [(text, pipeline.search(text, index, k=HITS)) for text in asked[:questions]]
            rows, embedding = _rows(pipeline, index, cases, settings, selectors)
            chunks = len(index.corpus)
    report = {
        "bench": "select",
        "machine": {**machine(), "threads": 1, "load_before": started, "load_after": load_average()},
        "corpus": {
            "set": name,
            "documents": len(texts),
            "chunks": chunks,
            "questions": len(cases),
            "hits": median(len(hits) for _, hits in cases),
        },
        "counter": {"name": pipeline.generator.counter.name, "additive": pipeline.generator.counter.additive},
        "budget": BUDGET,
        "embedding": embedding,
        "results": rows,
        "claims": _claims(rows),
    }
    _tell(settings, _table(report))
    return report


def _corpus(settings: Settings) -> tuple[str, dict[str, str], list[str]]:
    """(name, file -> text, questions)."""
    from eval.sets import read_set

    beside = Path(__file__).parents[2].parent / "shared" / "data"
    data = settings.data or (beside if beside.is_dir() else None)
    if data is None:
        from rag.sample import documents_dir, questions

        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(documents_dir().glob("*.md"))}
        return "sample documents", files, [one.text for one in questions()]
    found = read_set(data / DATA_SET)
    return DATA_SET, dict(found.texts), [one.text for one in found.questions]


# ---------------------------------------------------------------------- measuring


def _rows(
    pipeline: Pipeline, index: Index, cases: Sequence[Case], settings: Settings, selectors: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows, and what the embedder was asked for in all; each text is embedded once."""
    from eval.chunks.vectors import CachedEmbedder, CountingEmbedder
    from rag.registry import build

    seen: dict[str, dict[str, Any]] = {}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in selectors}
    asked = CountingEmbedder(inner=pipeline.embedder)
    remembering = CachedEmbedder(inner=asked, folder=None)
    built = {}
    for name, spec in selectors.items():
        _tell(settings, f"counting {name}")
        counted = [_counted(spec, remembering, pipeline.generator.counter, one, index) for one in cases]
        seen[name] = {key: median(one[key] for one in counted) for key in counted[0]}
        seen[name]["most_sets_scored"] = max(one["sets_scored"] for one in counted)
        services = {"counter": pipeline.generator.counter, "embedder": remembering}
        built[name] = build("selector", spec, services=services)
        for question, hits in cases:
            built[name].select(question, hits, index.corpus)
    for number in range(settings.rounds):
        _tell(settings, f"round {number + 1} of {settings.rounds}")
        order = list(built)[number % len(built) :] + list(built)[: number % len(built)]
        for name in order:
            rounds[name].append(medians([_measured(built[name], one, index) for one in cases]))
    rows = [
        {"name": name, "measure": "select", "work": seen[name], "rounds": rounds[name], "median": medians(rounds[name])}
        for name in selectors
    ]
    return rows, {**asked.counts, "ms_per_text": 1000 * asked.counts["cpu_seconds"] / max(1, asked.counts["texts"])}


def _measured(selector: Selector, case: Case, index: Index) -> dict[str, float]:
    """CPU milliseconds of one selection and its parts."""
    with timed() as seconds:
        begin = time.thread_time()
        selector.select(*case, index.corpus)
        total = time.thread_time() - begin
    units, scoring = seconds["units"], seconds["scoring"]
    parts = {"total": total, "units": units, "scoring": scoring, "choice": total - units - scoring}
    return {f"{name}_ms": 1000 * value for name, value in parts.items()}


def _counted(spec: Any, embedder: Embedder, counter: Any, case: Case, index: Index) -> dict[str, float]:
    """What one selection asks for when nothing is remembered."""
    from eval.chunks.vectors import CountingEmbedder
    from rag.registry import build

    tokens, vectors = CharCounter(counter), CountingEmbedder(inner=embedder)
    selector = build("selector", spec, services={"counter": tokens, "embedder": vectors})
    question, hits = case
    with worked() as work:
        bubble = selector.select(question, hits, index.corpus)
    return {
        "gains": work["gains"],
        "sets_scored": work["sets"],
        "tokenizer_calls": tokens.calls,
        "tokenised_over_hits": tokens.characters / max(1, sum(len(hit.chunk.text) for hit in hits)),
        "embedded_texts": vectors.counts["texts"],
        "ledger_lines": len(bubble.decisions),
    }


# ---------------------------------------------------------------------- claims and table


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    by_name = {row["name"]: row for row in rows}
    claims = []
    for name in (name for name in _BELOW_GOAL if name in by_name):
        times = by_name[name]["median"]
        claims.append(claim(f"{name}: CPU ms of choosing from {HITS} hits", times["choice_ms"], GOAL_MS, "lower"))
        if times["units_ms"]:
            both = times["choice_ms"] + times["units_ms"]
            claims.append(claim(f"{name}: the same, cutting sentences included", both, GOAL_MS, "lower"))
    if "mcts" in by_name:
        most = by_name["mcts"]["work"]["most_sets_scored"]
        claims.append(claim("mcts: sets scored, at most its evaluations", most, MCTS_SETS, "lower"))
    return claims


def _table(report: Mapping[str, Any]) -> str:
    times = ("total_ms", "units_ms", "scoring_ms", "choice_ms")
    work = ("embedded_texts", "gains", "sets_scored", "tokenizer_calls", "tokenised_over_hits")
    header = ["select", *(name.replace("_", " ") for name in (*times, *work))]
    rows = [
        [row["name"], *(row["median"][name] for name in times), *(row["work"][name] for name in work)]
        for row in report["results"]
    ]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    return "\n\n".join([table(header, rows), table(["claim", "value", "goal", ""], claims)])


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)
