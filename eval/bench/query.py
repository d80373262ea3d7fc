"""`rag bench query`: what a question costs, by stage, from a cold start and in an open process, against the peers.

Ours is the whole `Pipeline.ask` (retrieve, select, compress, generate, and keeping the run), in several configs; of the
peers their own hybrid retrieval of as many chunks, which is what they do without a language model. So retrieval is
compared with retrieval, and our cold start to a finished answer with theirs to the first hits. Every round is a fresh
process on a fresh copy of the store, A B C A B C, all with the same number of threads. Figures are medians over
questions, then over rounds; the spread is that of the rounds.

Questions are of the dev half of a set; without public data those of the sample documents.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.bench._children import Contender, Outcome, find_pythons, run_child
from eval.bench._corpus import write_documents
from eval.bench._query_report import claims_of, row_of, table_of
from eval.bench._report import Settings, load_average, machine
from rag.errors import RagError, UsageError

__all__ = ["VARIANTS", "contenders", "run"]

DATASET = "squad_long"
_HERE = Path(__file__).parent
_PEERS = _HERE / "peers"
INGEST, ASK = _PEERS / "_rag.py", _PEERS / "_query.py"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "chunkwise": {},
    "chunkwise, sentences kept": {"sentences": True},
    "chunkwise, top-k": {"selector": "top-k"},
    "chunkwise, dense": {"retriever": "faiss-dense"},
    "chunkwise, full text": {"retriever": "bm25", "selector": "top-k"},
}
"""What each changes of the config; the first is what the claims are about."""
Corpus = tuple[str, Mapping[str, str], Sequence[str]]
"""Name, file name -> text, questions."""


def contenders(config: Mapping[str, Any]) -> list[Contender]:
    """Ours in every config, then the peers in their best public settings."""
    from eval.peers.measuring import contenders as peers

    ours = [
        Contender(
            name=name, role="extra" if changes else "ours", module=_HERE / "_query_ours.py",
            options={"config": {**config, **changes}}, note=", ".join(f"{key}: {one}" for key, one in changes.items()),
        )
        for name, changes in VARIANTS.items()
    ]  # fmt: skip
    return [*ours, *(one for one in peers() if one.role == "peer")]


def run(settings: Settings, field: Iterable[Contender] | None = None, *, questions: int = 40) -> dict[str, Any]:
    """The report; `field` stands in for the real contenders in tests."""
    from eval.peers.measuring import DEPTH
    from rag.config import PipelineConfig
    from rag.embedders._files import find_folder

    config = PipelineConfig.from_yaml(settings.config) if settings.config else PipelineConfig.default()
    name, texts, asked = _corpus(settings, questions)
    _tell(settings, "looking for the peers")
    present, missing = _present(list(field) if field is not None else contenders(config.to_dict()), settings)
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        home = Path(folder)
        write_documents(texts, home / "documents")
        (home / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
        job = {
            "model": str(find_folder("")), "documents": str(home / "documents"), "k": DEPTH,
            "questions": str(home / "questions.json"),
        }  # fmt: skip
        outcomes = _measure(present, job, home, settings)
    rows = [row_of(one, outcomes[one.name]) for one in present]
    ours = next(row for row in rows if row["role"] == "ours")
    if ours["status"] != "ok":
        raise RagError(f"our own pipeline failed, so there is nothing to compare: {ours['reason']}")
    report = {
        "bench": "query",
        "machine": {**machine(), "threads": settings.threads, "load_before": started, "load_after": load_average()},
        "versions": {row["name"]: row.pop("versions") for row in rows if "versions" in row},
        "seed": settings.seed,
        "corpus": {"set": name, "documents": len(texts), "characters": sum(map(len, texts.values()))},
        "questions": len(asked),
        "rounds": settings.rounds,
        "config": config.to_dict(),
        "results": [*rows, *({"name": name, **outcome} for name, outcome in missing.items())],
        "claims": claims_of(rows),
    }
    _tell(settings, table_of(report))
    return report


def _corpus(settings: Settings, count: int) -> Corpus:
    """Documents drawn with the seed, and questions of the dev half about them."""
    beside = _HERE.parents[2] / "shared" / "data"
    data = settings.data or (beside if (beside / DATASET).is_dir() else None)
    draw = random.Random(settings.seed)  # noqa: S311
    if data is None:
        from rag.sample import documents_dir
        from rag.sample import questions as sample_questions

        texts = {one.name: one.read_text(encoding="utf-8") for one in sorted(documents_dir().glob("*.md"))}
        sample = [one.text for one in sample_questions()]
        return "sample documents", texts, draw.sample(sample, min(count, len(sample)))
    from eval.datasets import read_dataset

    dataset = read_dataset(data if (data / "queries.jsonl").is_file() else data / DATASET).part("dev")
    names = sorted(dataset.texts)
    kept = set(draw.sample(names, min(settings.documents, len(names))))
    asked = [one.text for one in dataset.questions if one.evidence and all(place[0] in kept for place in one.evidence)]
    if len(asked) < 2:
        raise UsageError(f"{dataset.name}: fewer than two dev questions about {len(kept)} documents; raise --documents")
    chosen = draw.sample(asked, min(count, len(asked)))
    return dataset.name, {name: dataset.texts[name] for name in names if name in kept}, chosen


def _present(asked: Sequence[Contender], settings: Settings) -> tuple[list[Contender], dict[str, Outcome]]:
    """Ours run in this interpreter; peers in the first that has them."""
    own = [replace(one, python=sys.executable) for one in asked if one.role != "peer"]
    pythons = settings.peer_pythons or (sys.executable,)
    found, missing = find_pythons([one for one in asked if one.role == "peer"], pythons, settings.threads)
    return [*own, *found], missing


def _measure(
    present: Sequence[Contender], job: Mapping[str, Any], home: Path, settings: Settings
) -> dict[str, list[Outcome]]:
    """One ingest each, that is not measured; then the rounds, in turn, each on a copy of the store as it was then."""
    outcomes: dict[str, list[Outcome]] = {one.name: [] for one in present}
    for number, one in enumerate(present):
        _tell(settings, f"ingest: {one.name}")
        made = run_child(one, {**job, "task": "ingest", "store": str(home / f"{number}")}, settings.threads, INGEST)
        if made["status"] != "ok":
            outcomes[one.name].append({**made, "reason": f"ingest: {made.get('reason')}"})
    for at in range(1, settings.rounds + 1):
        for number, one in enumerate(present):
            if outcomes[one.name] and outcomes[one.name][0]["status"] != "ok":
                continue
            _tell(settings, f"round {at} of {settings.rounds}: {one.name}")
            with tempfile.TemporaryDirectory(dir=home) as folder:
                store = Path(shutil.copytree(home / f"{number}", Path(folder) / "store"))
                outcomes[one.name].append(run_child(one, {**job, "store": str(store)}, settings.threads, ASK))
    return outcomes


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)
