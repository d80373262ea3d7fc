"""What any selector should be held against: chance, the beginnings of documents, and the evidence itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from eval.chunks.measures import merged
from eval.sets import Place
from rag.protocols import Corpus, Selector, TokenCounter
from rag.registry import build
from rag.text import assemble
from rag.types import Bubble, Hit, Span

__all__ = ["REFERENCES", "reference"]

REFERENCES = ("(random)", "(lead)", "(oracle)")
_Order = Callable[[str, Sequence[Hit]], list[Hit]]


def reference(name: str, counter: TokenCounter, budget: int, evidence: Sequence[Place]) -> Selector:
    """One of REFERENCES for the question with this `evidence`, which only the oracle reads."""
    if name == "(oracle)":
        return _Oracle(counter, budget, evidence)
    return _Reordered(counter, budget, {"(random)": _shuffled, "(lead)": _lead}[name])


class _Reordered(Selector):
    """Whole chunks as top-k takes them, after another order of the same hits."""

    def __init__(self, counter: TokenCounter, budget: int, order: _Order) -> None:
        self._inner: Selector = build("selector", {"use": "top-k", "budget": budget}, services={"counter": counter})
        self._order = order

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        ordered = [replace(hit, rank=rank) for rank, hit in enumerate(self._order(question, hits), start=1)]
        return self._inner.select(question, ordered, corpus)


def _shuffled(question: str, hits: Sequence[Hit]) -> list[Hit]:
    """By a hash of question and chunk: as good as random, and the same in every run."""
    return sorted(hits, key=lambda hit: hashlib.blake2b(f"{question}\0{hit.chunk.id}".encode(), digest_size=8).digest())


def _lead(question: str, hits: Sequence[Hit]) -> list[Hit]:
    """Documents by their best hit, and each from its beginning."""
    best: dict[str, int] = {}
    for hit in hits:
        best[hit.chunk.doc_id] = min(hit.rank, best.get(hit.chunk.doc_id, hit.rank))
    return sorted(hits, key=lambda hit: (best[hit.chunk.doc_id], hit.chunk.span))


class _Oracle(Selector):
    """The evidence inside of the hits and nothing else, short pieces first, the last one cut to fit."""

    def __init__(self, counter: TokenCounter, budget: int, evidence: Sequence[Place]) -> None:
        self._counter = counter
        self._budget = budget
        self._evidence = evidence

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        chosen: list[tuple[Hit, Span]] = []
        for hit, span in sorted(self._pieces(hits), key=lambda piece: (len(piece[1]), piece[0].rank)):
            fitting = self._fitting(chosen, hit, span)
            if fitting is not None:
                chosen.append((hit, fitting))
            if fitting != span:
                break
        return self._bubble(question, chosen)

    def _pieces(self, hits: Sequence[Hit]) -> list[tuple[Hit, Span]]:
        """Each character of the evidence once, in the first hit that holds it."""
        pieces: list[tuple[Hit, Span]] = []
        ordered = sorted(hits, key=lambda hit: (hit.chunk.doc_id, hit.chunk.span))
        for name, start, end in merged(self._evidence):
            at = start
            for hit in ordered:
                low, high = max(at, hit.chunk.span.start), min(end, hit.chunk.span.end)
                if hit.chunk.doc_id == name and low < high:
                    pieces.append((hit, Span(low, high)))
                    at = high
        return pieces

    def _fitting(self, chosen: Sequence[tuple[Hit, Span]], hit: Hit, span: Span) -> Span | None:
        """The longest beginning of `span` that fits, by halves; None when nothing does."""
        low, high = 0, len(span)
        while low < high:
            middle = (low + high + 1) // 2
            tried = [*chosen, (hit, Span(span.start, span.start + middle))]
            low, high = (middle, high) if self._count(tried) <= self._budget else (low, middle - 1)
        return Span(span.start, span.start + low) if low else None

    def _bubble(self, question: str, chosen: Sequence[tuple[Hit, Span]]) -> Bubble:
        by_hit: dict[int, tuple[Hit, list[Span]]] = {}
        for hit, span in chosen:
            by_hit.setdefault(hit.rank, (hit, []))[1].append(span)
        parts = [(hit, tuple(sorted(spans))) for _, (hit, spans) in sorted(by_hit.items())]
        made = Bubble(
            question=question,
            hits=tuple(hit for hit, _ in parts),
            token_count=0,
            budget=self._budget,
            decisions=(),
            kept=tuple(spans for _, spans in parts),
        )
        return replace(made, token_count=self._counter.count(assemble(made.texts)))

    def _count(self, chosen: Sequence[tuple[Hit, Span]]) -> int:
        return self._bubble("", chosen).token_count
