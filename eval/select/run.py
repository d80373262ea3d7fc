"""One evaluation from settings to rows: index each set, retrieve once, select at every budget, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eval.chunks.vectors import CachedEmbedder
from eval.select.counting import counters_of
from eval.select.indexes import Indexed, opened
from eval.select.measures import held
from eval.select.rows import Asking, Row, rows_of
from eval.select.sets import Asked, read_asked
from eval.select.settings import Settings, label_of
from eval.sets import Question
from rag.protocols import Embedder, TokenCounter
from rag.registry import Spec, build
from rag.tokens import WordCounter
from rag.types import Bubble

__all__ = ["Evaluated", "Evaluation", "evaluate", "run"]

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One set: what it is, its questions, the names of its documents by id, and its rows."""

    facts: Mapping[str, Any]
    questions: tuple[Question, ...]
    names: Mapping[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All sets, and the models behind them. `absent`: counter -> why it could not be had."""

    embedder: str
    counters: Mapping[str, str]
    absent: Mapping[str, str]
    sets: Mapping[str, Evaluated]


def run(settings: Settings, tell: Tell) -> Evaluation:
    """The evaluation of the sets on disk."""
    settings.check()
    return evaluate(settings, (read_asked(settings.data, name, settings.half) for name in settings.sets), tell)


def evaluate(settings: Settings, sets: Iterable[Asked], tell: Tell) -> Evaluation:
    """As `run`, of sets that are at hand."""
    inner: Embedder = build("embedder", settings.embedder, services={}, path="--embedder")
    embedder = CachedEmbedder(inner=inner, folder=settings.cache / "vectors" if settings.cache else None)
    counters, absent = counters_of(settings.counters, embedder)
    found: dict[str, Evaluated] = {}
    for asked in sets:
        settings.check_leaks(asked)
        tell(f"{asked.name}: {len(asked.texts)} documents, {len(asked.questions)} questions; indexing")
        with opened(asked, embedder, settings.chunker or asked.chunker, settings.cache) as indexed:
            found[asked.name] = _evaluated(settings, indexed, counters, embedder, tell)
    names = {unit: counter.name for unit, counter in counters.items()}
    return Evaluation(embedder=embedder.fingerprint, counters=names, absent=absent, sets=found)


def _evaluated(
    settings: Settings, indexed: Indexed, counters: dict[str, TokenCounter], embedder: Embedder, tell: Tell
) -> Evaluated:
    asked = indexed.asked
    rows: list[Row] = []
    held_by_hits: dict[str, dict[str, float]] = {}
    for spec in settings.retrievers:
        asking = _asking(indexed, spec, tell)
        held_by_hits[asking.retriever] = _ceiling(asking)
        rows += rows_of(
            asking, settings.labelled, counters, sorted(settings.budgets), embedder, settings.references, tell
        )
    facts = {
        "documents": len(asked.texts),
        "poisoned_documents": len(asked.poisoned),
        "questions": len(asked.questions),
        "chunks": indexed.chunks,
        "chunker": indexed.chunker if isinstance(indexed.chunker, str) else dict(indexed.chunker),
        "digests": {"documents": asked.digest, "questions": asked.asked_digest},
        "held_by_hits": held_by_hits,
    }
    return Evaluated(facts=facts, questions=asked.questions, names=indexed.name_of, rows=tuple(rows))


def _asking(indexed: Indexed, retriever: Spec, tell: Tell) -> Asking:
    questions = indexed.asked.questions
    tell(f"{indexed.asked.name}: {label_of(retriever)} answers {len(questions)} questions")
    return Asking(
        indexed=indexed,
        retriever=label_of(retriever),
        hits=[indexed.hits(retriever, question.text) for question in questions],
        gold=[indexed.evidence(question.evidence) for question in questions],
        poisoned=frozenset(doc_id for doc_id, name in indexed.name_of.items() if name in indexed.asked.poisoned),
    )


def _ceiling(asking: Asking) -> dict[str, float]:
    """What all hits hold together: what a selector could keep at most if it adds nothing, were there no budget."""
    sums = {"recall": 0.0, "all": 0.0, "poisoned": 0.0}
    for hits, evidence in zip(asking.hits, asking.gold, strict=True):
        everything = Bubble(question="", hits=tuple(hits), token_count=0, budget=0, decisions=())
        found = held(everything, evidence, 0, WordCounter(), asking.indexed.text_of, asking.poisoned)
        for name in sums:
            sums[name] += found.scores[name]
    return {name: round(value / len(asking.hits), 4) for name, value in sums.items()}
