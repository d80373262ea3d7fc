"""Keeps the sentences that answer the question: the default compressor."""

from __future__ import annotations

from dataclasses import dataclass

from compressors._prune import Pruning, header_rows, openers_lean
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Embedder, TokenCounter, service
from rag.spans.choice import boosted
from rag.spans.features import NAMES, NEARBY, UNIT_CHARS, WEIGHTS, pool_of
from rag.spans.pieces import aim, check_size, unchanged
from rag.spans.units import units_of_bubble
from rag.text import assemble
from rag.types import Bubble, CompressedContext


@dataclass(frozen=True, kw_only=True)
class SentencePruneCompressor(Compressor):
    """Whole sentences (rows, list items, blocks of code), as slices of the source.

    Relevance v is that of the span bubble: `weights` . (cosine of sentence, of chunk and of a window of three
    sentences, BM25 of sentence and of chunk, scaled retriever score) + `nearby` * (IDF share of the question's words in
    it or near it) + `kappa` * v of the better neighbour. Sentences are ordered greedily by v - `lam` * (largest
    similarity with one before it) and taken in that order as long as they fit; one is exchanged at the end where that
    comes nearer to the target. Where more than 3 % of the target is left even so, those of least gain are freed and the
    room is filled anew, the better half untouched (the rule is in compressors/_band.py). Nothing is cut inside of a
    sentence, so numbers, negations and names are never mangled; one longer than `unit_chars` characters is parted at
    lines or words.

    `repair`: a sentence that opens with a reference or a connective brings the one before it along, a row of a table
    its header row, where that fits. Without an embedder words alone decide.
    """

    target: int | None = None
    rate: float = 0.5
    weights: tuple[float, ...] = WEIGHTS
    nearby: float = NEARBY
    lam: float = 0.6
    kappa: float = 0.2
    repair: bool = True
    stems: bool = True
    unit_chars: int = UNIT_CHARS
    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("sentence-prune", self.target, self.rate)
        if len(self.weights) != len(NAMES):
            raise ConfigError(
                f"sentence-prune: weights must be {len(NAMES)} numbers ({', '.join(NAMES)}), not {self.weights!r}"
            )
        for name, high in (("nearby", 100), ("lam", 100), ("kappa", 1)):
            if not 0.0 <= getattr(self, name) <= high:
                raise ConfigError(f"sentence-prune: {name} must be between 0 and {high}, not {getattr(self, name)}")
        if self.unit_chars < 20:
            raise ConfigError(f"sentence-prune: unit_chars must be >= 20, not {self.unit_chars}")

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        import numpy as np

        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "sentence-prune")
        units = units_of_bubble(bubble, corpus, self.unit_chars)
        pool = pool_of(bubble.question, units, corpus, self.embedder, self.weights, len(units.units), stems=self.stems)
        values = pool.parts @ np.asarray(self.weights) + self.nearby * pool.nearby
        values = boosted(values, units, pool, self.kappa)
        needs = {**openers_lean(units), **header_rows(units, corpus)} if self.repair else {}
        parts = [dict(zip(NAMES, row, strict=True)) for row in pool.parts.tolist()]
        pruning = Pruning(
            bubble,
            units,
            pool.numbers,
            values,
            np.asarray(pool.similarity, dtype=np.float64),
            self.counter,
            needs,
            parts,
        )
        return pruning.run("sentence-prune", goal, self.lam)
