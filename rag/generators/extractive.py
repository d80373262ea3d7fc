"""Answers in the documents' own words: no language model, nothing that the documents do not say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rag.answer import Generation, GenerationStats
from rag.errors import ConfigError
from rag.generators._sentences import Sentence, context_sentences, documents_of
from rag.generators._support import content_words, supports
from rag.prompt import NOT_FOUND
from rag.protocols import Corpus, Embedder, Generator, TokenCounter, service
from rag.types import CompressedContext, Span

_SAME = 0.7  # two sentences that share this much of the shorter one's content words say the same


@dataclass(frozen=True, kw_only=True)
class ExtractiveGenerator(Generator):
    """Quotes the sentences of the context that answer the question best, or says that none does.

    Support of a sentence = (1 - lexical_weight) x cosine with the question + lexical_weight x rarity-weighted share
    of the question's words in it. The best sentence answers if its support is at least `min_support`; up to
    `max_sentences` are given, as long as their support is at least `keep_within` of the best and they say
    something else. Headings never answer alone.

    Calibrated with eval/calibrate_extractive.py and MiniLM on 2026-11-22 on six public sets (SQuAD, Chroma, NQ, CLAPnq,
    HotpotQA, COVID-QA; 840 questions, six passages each); the threshold is from one half, the figures from the other.
    The best sentence holds the answer for 71 % of the questions whose context holds it (62 % with cosine alone, 65 %
    with words alone). Answered: 93 % of those, 5 % of questions about another corpus (AUROC .982, F1 of answering and
    abstaining .940), but 47 % when the topic is there and the answer is not (AUROC .833; CLAPnq's unanswerable
    questions: 34 %, .899). A logistic over ten features did no better than this blend of two on held-out questions.
    With the embedder hashing: 89 % and 7 %, AUROC .977. Tried and dropped, since nothing was gained: less support for
    a piece that lacks a number or article of the question.
    """

    embedder: Embedder = service()
    max_sentences: int = 3
    min_support: float = 0.38
    keep_within: float = 0.85
    lexical_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.max_sentences < 1:
            raise ConfigError(f"extractive: max_sentences must be >= 1, not {self.max_sentences}")
        for name in ("min_support", "keep_within", "lexical_weight"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"extractive: {name} must lie in [0, 1], not {value}")

    @property
    def counter(self) -> TokenCounter:
        return self.embedder.counter

    def generate(
        self, context: CompressedContext, corpus: Corpus, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        started = time.perf_counter()
        found = [s for s in context_sentences(context, documents_of(context, corpus)) if not s.heading]
        scores = self.scores(context.question, found, corpus)
        chosen = self._choose(found, scores)
        notes = {"support": round(max(scores, default=0.0), 4), "threshold": self.min_support}
        return _write(chosen, notes, started, on_text)

    def scores(self, question: str, found: Sequence[Sentence], corpus: Corpus | None = None) -> list[float]:
        """Support of every sentence, a table row read behind its lead."""
        return supports(question, [s.in_context for s in found], self.embedder, self.lexical_weight, corpus)

    def _choose(self, found: Sequence[Sentence], scores: Sequence[float]) -> list[Sentence]:
        """Best first, ties in the context's order; [] when nothing is good enough."""
        order = sorted(range(len(found)), key=lambda at: (-scores[at], at))
        least = max(self.min_support, self.keep_within * scores[order[0]]) if order else 0.0
        chosen: list[Sentence] = []
        for at in order:
            if len(chosen) == self.max_sentences or scores[at] < least:
                break
            if not any(_same(found[at].text, other.text) for other in chosen):
                chosen.append(found[at])
        return chosen


def _same(one: str, other: str) -> bool:
    words, others = set(content_words(one)), set(content_words(other))
    return len(words & others) >= _SAME * max(1, min(len(words), len(others)))


def _write(
    chosen: Sequence[Sentence], notes: dict[str, float], started: float, on_text: Callable[[str], None] | None
) -> Generation:
    """The chosen sentences with their marks. Line ends inside a sentence become spaces; the citation stays exact."""
    text, spans = "", []
    first = 0.0
    for sentence in chosen:
        gap = " " if text else ""
        quote = f"{' '.join(sentence.text.split())} [{sentence.mark}]"
        spans.append(Span(len(text) + len(gap), len(text) + len(gap) + len(quote)))
        text += gap + quote
        first = first or time.perf_counter() - started
        if on_text:
            on_text(gap + quote)
    if not chosen and on_text:
        on_text(NOT_FOUND)
    total = time.perf_counter() - started
    return Generation(
        text=text or NOT_FOUND,
        citations=tuple(sentence.cite() for sentence in chosen),
        sentences=tuple(spans),
        supported=(True,) * len(spans),
        stats=GenerationStats(ttft_seconds=first or total, total_seconds=total),
        notes=notes,
    )
