"""A selector over the hits of all questions at one budget: what it kept, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from eval.chunks.vectors import CountingEmbedder
from eval.select.counting import CountingCounter
from eval.select.indexes import Indexed
from eval.select.measures import Measured, held
from eval.select.references import REFERENCES, reference
from eval.sets import Place
from rag.protocols import Embedder, Selector, TokenCounter
from rag.registry import Spec, build
from rag.types import Hit

__all__ = ["Asking", "Row", "Work", "rows_of", "selected"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one selection asked for: texts to embed, calls of the tokenizer and characters given to it."""

    candidates: int
    embedded: int
    counter_calls: int
    counted_chars: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures per question, in the order of the questions. `cpu_ms` is without the encoder's share, `counter_ms` the
    tokenizer's share of it.
    """

    retriever: str
    selector: str
    counter: str
    budget: int
    measured: list[Measured] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    counter_ms: list[float] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, str, int]:
        """Rows with the same place are compared."""
        return self.retriever, self.counter, self.budget

    def scores(self, name: str) -> list[float]:
        return [one.scores[name] for one in self.measured]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The questions of a set as one retriever answered them, and their evidence in ids of the index."""

    indexed: Indexed
    retriever: str
    hits: Sequence[Sequence[Hit]]
    gold: Sequence[Sequence[Place]]
    poisoned: frozenset[str]


def selected(
    asking: Asking, label: str, spec: Spec | None, unit: str, counter: TokenCounter, budget: int, embedder: Embedder
) -> Row:
    """The row of a selector; `spec` None for a reference."""
    row = Row(retriever=asking.retriever, selector=label, counter=unit, budget=budget)
    counting, embedding = CountingCounter(counter), CountingEmbedder(inner=embedder)
    make = _maker(label, spec, counting, embedding, budget)
    indexed = asking.indexed
    for question, hits, evidence in zip(indexed.asked.questions, asking.hits, asking.gold, strict=True):
        selector = make(evidence)
        before = _state(counting, embedding)
        begin = time.process_time()
        bubble = selector.select(question.text, hits, indexed.index.corpus)
        spent = time.process_time() - begin
        after = _state(counting, embedding)
        calls, characters, counted, texts, encoding = (now - then for now, then in zip(after, before, strict=True))
        row.cpu_ms.append(1000 * max(0.0, spent - encoding))
        row.counter_ms.append(1000 * counted)
        work = Work(candidates=len(hits), embedded=int(texts), counter_calls=int(calls), counted_chars=int(characters))
        row.work.append(work)
        row.measured.append(held(bubble, evidence, budget, counter, indexed.text_of, asking.poisoned))
    return row


def rows_of(
    asking: Asking,
    selectors: dict[str, Spec],
    counters: dict[str, TokenCounter],
    budgets: Sequence[int],
    embedder: Embedder,
    references: bool,
    tell: Callable[[str], None],
) -> Iterator[Row]:
    """Every selector, and the references, in every unit at every budget."""
    for label, spec in [*selectors.items(), *((name, None) for name in REFERENCES if references)]:
        tell(f"{asking.indexed.asked.name}: {label} over {asking.retriever}")
        for unit, counter in counters.items():
            for budget in budgets:
                yield selected(asking, label, spec, unit, counter, budget, embedder)


def _maker(
    label: str, spec: Spec | None, counter: TokenCounter, embedder: Embedder, budget: int
) -> Callable[[Sequence[Place]], Selector]:
    """Gives the selector for a question with that evidence; only a reference may look at it."""
    if spec is None:
        return lambda evidence: reference(label, counter, budget, evidence)
    given = {"use": spec} if isinstance(spec, str) else dict(spec)
    services = {"counter": counter, "embedder": embedder}
    plugin: Selector = build("selector", {**given, "budget": budget}, services=services, path="--selector")
    return lambda evidence: plugin


def _state(counter: CountingCounter, embedder: CountingEmbedder) -> tuple[float, ...]:
    return (
        counter.calls,
        counter.characters,
        counter.cpu_seconds,
        embedder.counts["texts"],
        embedder.counts["cpu_seconds"],
    )
