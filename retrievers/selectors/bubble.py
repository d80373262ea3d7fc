"""The context bubble: sentences chosen under a token budget, or the published method on whole chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, service
from rag.spans.choice import SpanChoice, boosted, prior_of
from rag.spans.features import NAMES, NEARBY, UNIT_CHARS, WEIGHTS, pool_of
from rag.spans.filling import Filling
from rag.spans.units import Units, units_of
from rag.types import Bubble, Hit
from retrievers.selectors._paper import PaperBubble, scored

_HIGHEST = {"lam": 100, "kappa": 1, "nearby": 100, "linked": 100, "coverage": 100, "overlap": 1, "section_share": 1}


@dataclass(frozen=True, kw_only=True)
class BubbleSelector(Selector):
    """Context Bubble (Khurshid & Sehgal, arXiv 2601.10681), by one of two objectives.

    `span`, ours: units are sentences (rows, list items, blocks of code). Relevance v = `weights` . (cosine of sentence,
    of chunk and of a window of three sentences, BM25 of sentence and of chunk, scaled retriever score) + `nearby` *
    (IDF share of the question's words that stand in it; .8, .6, .4, .2 of that share for words in a sentence 1, 2, 3, 4
    away) + `kappa` * v of the better neighbour; then greedily the largest v - `lam` * (largest similarity with a chosen
    unit). `stems`: words meet by their (English, Porter) stems. The best `pool` units are scored in full; longer ones
    than `unit_chars` characters are parted. Off unless set: `coverage` (gain for question words that nothing chosen
    has), `linked` (credit for units of a hit that a link leads to, one with a part `link.rank`: see `bridge`),
    `closure` (a chosen sentence that opens with a reference takes the one before it and its heading, where they fit),
    `source_cap` (tokens of one document), `overlap` (IDF share of said words from which a unit is redundant).

    `paper`: score (`score` + boosts + keywords) / (1 + tokens / `theta`) on whole chunks; gates for budget, section,
    redundancy (`delta`) and `min_score`. `section_share` 1 switches the section gate off; `reallocate` offers what it
    refused once more. Deviations: a section may always hold the best chunk; the section gate counts the candidate too;
    a chunk that a chosen one contains, or that contains one, is redundant; `stop_at_budget` (the paper goes on to
    smaller chunks) keeps a larger budget from covering less; function words of the question are not counted.

    `priors` add to the score of documents by what ingestion knows: {"source=handbook/*": 0.2, "meta.tier=gold": 0.3}.
    Use fields that the writer of a document cannot set. `boosts` and `keywords` go by text, which a writer can set.
    """

    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    budget: int = 1200
    objective: Literal["span", "paper"] = "span"
    weights: tuple[float, ...] = WEIGHTS
    nearby: float = NEARBY
    linked: float = 0.0
    stems: bool = True
    lam: float = 0.6
    kappa: float = 0.2
    pool: int = 160
    unit_chars: int = UNIT_CHARS
    coverage: float = 0.0
    closure: bool = False
    source_cap: int = 0
    overlap: float = 0.0
    priors: Mapping[str, float] = field(default_factory=dict)
    score: Literal["tf", "bm25", "retriever"] = "tf"
    theta: float = 0.0
    delta: float = 0.55
    section_share: float = 1.0
    min_score: float = 0.0
    boosts: Mapping[str, float] = field(default_factory=dict)
    keywords: Mapping[str, float] = field(default_factory=dict)
    reallocate: bool = False
    stop_at_budget: bool = True

    def __post_init__(self) -> None:
        if self.objective not in ("span", "paper") or self.score not in ("tf", "bm25", "retriever"):
            raise ConfigError(
                "bubble: objective must be span or paper, and score tf, bm25 or retriever, "
                f"not objective={self.objective!r}, score={self.score!r}"
            )
        for name, low in (("budget", 1), ("pool", 1), ("unit_chars", 20), ("source_cap", 0), ("theta", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"bubble: {name} must be >= {low}, not {getattr(self, name)}")
        for name, high in _HIGHEST.items():
            if not 0.0 <= getattr(self, name) <= high:
                raise ConfigError(f"bubble: {name} must be between 0 and {high}, not {getattr(self, name)}")
        if not 0.0 < self.delta <= 1.0 or not self.section_share:
            raise ConfigError(
                f"bubble: delta and section_share must be above 0, not {self.delta}, {self.section_share}"
            )
        if len(self.weights) != len(NAMES):
            raise ConfigError(
                f"bubble: weights must be {len(NAMES)} numbers ({', '.join(NAMES)}), not {self.weights!r}"
            )
        wrong = [key for key in self.priors if not (key.startswith(("source=", "meta.")) and "=" in key)]
        if wrong:
            raise ConfigError(f"bubble: priors must be named source=PATTERN or meta.NAME=VALUE, not {wrong[0]!r}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        priors = {
            doc_id: prior_of(self.priors, corpus.document(doc_id))
            for doc_id in (dict.fromkeys(hit.chunk.doc_id for hit in hits) if self.priors else ())
        }
        if self.objective == "paper":
            return self._paper(question, sorted(hits, key=lambda hit: hit.rank), corpus, priors)
        import numpy as np

        units = units_of(hits, corpus, self.unit_chars)
        pool = pool_of(question, units, corpus, self.embedder, self.weights, self.pool, stems=self.stems)
        twins = [number for number, twin in enumerate(units.twins) if twin >= 0]
        filling = Filling(units, [*pool.numbers, *twins], self.counter, self.budget)
        trusted = np.array([priors.get(units.units[number].doc_id, 0.0) for number in pool.numbers])
        values = pool.parts @ np.asarray(self.weights) + self.nearby * pool.nearby + trusted
        values = values + self.linked * np.array(_linked(units, pool.numbers), dtype=np.float64)
        values = boosted(values, units, pool, self.kappa)
        choice = SpanChoice(
            units,
            pool,
            values,
            filling,
            lam=self.lam,
            coverage=self.coverage,
            closure=self.closure,
            overlap=self.overlap,
            source_cap=self.source_cap,
        )
        return choice.run(question)

    def _paper(self, question: str, hits: Sequence[Hit], corpus: Corpus, priors: Mapping[str, float]) -> Bubble:
        candidates = scored(
            question,
            hits,
            self.counter,
            score=self.score,
            theta=self.theta,
            boosts=self.boosts,
            keywords=self.keywords,
            priors=[priors.get(hit.chunk.doc_id, 0.0) for hit in hits],
            sources=[corpus.document(hit.chunk.doc_id).source for hit in hits],
        )
        gates = PaperBubble(
            counter=self.counter,
            budget=self.budget,
            delta=self.delta,
            section_share=self.section_share,
            min_score=self.min_score,
            reallocate=self.reallocate,
            stop_at_budget=self.stop_at_budget,
        )
        return gates.run(question, candidates)


def _linked(units: Units, numbers: Sequence[int]) -> list[bool]:
    """For each of these units: whether a hit that holds it was reached by a link."""
    by_link = {place for place, hit in enumerate(units.hits) if "link.rank" in hit.parts}
    return [not by_link.isdisjoint(units.units[number].holders) for number in numbers]
