"""One evaluation from settings to rows: index a set, make the contexts once, compress them at every rate, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eval.chunks.vectors import CachedEmbedder
from eval.compress.likelihood import likelihoods
from eval.compress.references import REFERENCES, parts_of
from eval.compress.rows import Asked, Row, compressed
from eval.compress.settings import Settings
from eval.select.indexes import Indexed, opened
from eval.select.sets import Asked as AskedSet
from eval.select.sets import read_asked
from eval.sets import Question
from rag.errors import UsageError
from rag.protocols import Embedder, Generator, Selector, TokenCounter
from rag.registry import build

__all__ = ["Evaluated", "Evaluation", "evaluate", "run"]

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One set: what it is, its questions, the names of its documents by id, its rows, and gold answers' likelihoods."""

    facts: Mapping[str, Any]
    questions: tuple[Question, ...]
    names: Mapping[str, str]
    rows: tuple[Row, ...]
    likelihoods: Mapping[int, list[float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All sets, and the models behind them."""

    embedder: str
    counter: str
    sets: Mapping[str, Evaluated]


def run(settings: Settings, tell: Tell) -> Evaluation:
    """The evaluation of the sets on disk."""
    settings.check()
    return evaluate(settings, (read_asked(settings.data, name, settings.half) for name in settings.sets), tell)


def evaluate(settings: Settings, sets: Iterable[AskedSet], tell: Tell) -> Evaluation:
    """As `run`, of sets that are at hand."""
    inner: Embedder = build("embedder", settings.embedder, services={}, path="--embedder")
    embedder = CachedEmbedder(inner=inner, folder=settings.cache / "vectors" if settings.cache else None)
    generator: Generator = build(
        "generator", settings.generator, services={"counter": embedder.counter, "embedder": embedder}
    )
    counter = generator.counter
    found: dict[str, Evaluated] = {}
    for asked in sets:
        tell(f"{asked.name}: {len(asked.texts)} documents, {len(asked.questions)} questions; indexing")
        with opened(asked, embedder, asked.chunker, settings.cache) as indexed:
            found[asked.name] = _evaluated(settings, indexed, counter, embedder, generator, tell)
    return Evaluation(embedder=embedder.fingerprint, counter=counter.name, sets=found)


def _evaluated(
    settings: Settings,
    indexed: Indexed,
    counter: TokenCounter,
    embedder: Embedder,
    generator: Generator,
    tell: Tell,
) -> Evaluated:
    asked = _asked(settings, indexed, counter, embedder)
    corpus = indexed.index.corpus
    rows: list[Row] = []
    for label, spec in [*((name, None) for name in REFERENCES), *settings.labelled.items()]:
        tell(f"{indexed.asked.name}: {label}")
        for rate in sorted(settings.rates, reverse=True):
            rows.append(
                compressed(asked, corpus, label, spec, rate, counter=counter, embedder=embedder, generator=generator)
            )
    whole = compressed(asked, corpus, "none", "none", 1.0, counter=counter, embedder=embedder, generator=generator)
    rows.insert(0, whole)
    told: dict[int, list[float]] = {}
    if settings.likelihood:
        tell(f"{indexed.asked.name}: likelihood of the answers of up to {settings.likelihood} questions")
        model = generator.text_model
        if model is None:
            raise UsageError("--likelihood needs a generator with a language model: --generator local")
        told = likelihoods(asked, rows, model, settings.likelihood)
    facts = {
        "documents": len(indexed.asked.texts),
        "questions": len(asked),
        "with_answers": sum(score is not None for score in whole.scores("answer")),
        "source_tokens": sum(whole.source_tokens) / len(asked),
        "digests": {"documents": indexed.asked.digest, "questions": indexed.asked.asked_digest},
    }
    questions = tuple(one.question for one in asked)
    return Evaluated(facts=facts, questions=questions, names=indexed.name_of, rows=tuple(rows), likelihoods=told)


def _asked(settings: Settings, indexed: Indexed, counter: TokenCounter, embedder: Embedder) -> list[Asked]:
    spec = {"use": settings.selector} if isinstance(settings.selector, str) else dict(settings.selector)
    services = {"counter": counter, "embedder": embedder}
    selector: Selector = build("selector", {**spec, "budget": settings.budget}, services=services, path="--selector")
    corpus = indexed.index.corpus
    found = []
    for question in indexed.asked.questions[: settings.questions]:
        bubble = selector.select(question.text, indexed.hits(settings.retriever, question.text), corpus)
        gold = indexed.evidence(question.evidence)
        if bubble.hits:
            found.append(Asked(question=question, bubble=bubble, sentences=parts_of(bubble, corpus), evidence=gold))
    if not found:
        raise UsageError(f"--set {indexed.asked.name}: no question has a context")
    return found
