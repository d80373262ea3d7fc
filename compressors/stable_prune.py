"""Shortens every chunk alone, whatever the question: the same piece each time, so that its KV can be reused."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressors._prune import Pruning, header_rows, openers_lean
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Embedder, TokenCounter, service
from rag.spans.features import UNIT_CHARS, unit_vectors
from rag.spans.pieces import aim, check_size, context_of, unchanged
from rag.spans.units import units_of_bubble
from rag.text import assemble
from rag.types import Bubble, CompressedContext, Decision, Span


@dataclass(frozen=True, kw_only=True)
class StablePruneCompressor(Compressor):
    """Whole sentences of each chunk up to `rate` of its tokens, by how well they stand for the chunk.

    Order: greedily by cosine with the mean of the chunk's sentences - `lam` * (largest similarity with one before it),
    the first sentence with `lead` on top (centroid summaries, Radev et al., ANLP 2000). `repair` as in
    `sentence-prune`. The question plays no part, and no chunk sees another: what is left of a chunk is the same in
    every context, so a key-value cache of it can be used again. `target` None, or what fits: chunks of the lowest
    ranks then go whole. Where reuse does not matter, `sentence-prune` keeps more of what was asked for.
    """

    target: int | None = None
    rate: float = 0.5
    lam: float = 0.3
    lead: float = 0.2
    repair: bool = True
    unit_chars: int = UNIT_CHARS
    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("stable-prune", self.target, self.rate)
        for name in ("lam", "lead"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ConfigError(f"stable-prune: {name} must be between 0 and 100, not {getattr(self, name)}")
        if self.unit_chars < 20:
            raise ConfigError(f"stable-prune: unit_chars must be >= 20, not {self.unit_chars}")

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        if aim(size, self.target, self.rate) >= size:
            return unchanged(bubble, self.counter, "stable-prune")
        kept: list[tuple[Span, ...]] = []
        decisions: list[Decision] = []
        for hit, spans in zip(bubble.hits, bubble.spans, strict=True):
            alone = self._alone(replace(bubble, hits=(hit,), kept=(spans,), decisions=()), corpus)
            kept.append(alone.pieces[0].kept if alone.pieces else ())
            decisions.extend(alone.decisions)
        ranks = sorted(range(len(kept)), key=lambda place: -bubble.hits[place].rank)
        while True:
            context = context_of(bubble, kept, self.counter, "stable-prune", decisions)
            if self.target is None or context.token_count <= self.target:
                return context
            last = next(place for place in ranks if kept[place])
            kept[last] = ()
            chunk_id = bubble.hits[last].chunk.id
            why = "its chunk does not fit into the target"
            decisions = [
                replace(one, action="drop", reason=why) if one.chunk_id == chunk_id else one for one in decisions
            ]

    def _alone(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        """One chunk shortened by `rate`."""
        import numpy as np

        units = units_of_bubble(bubble, corpus, self.unit_chars)
        numbers = [number for number, twin in enumerate(units.twins) if twin < 0]
        texts = [units.units[number].text for number in numbers]
        vectors = unit_vectors(texts, self.embedder, corpus)
        if vectors is None:
            values, similarity = np.zeros(len(numbers)), np.zeros((len(numbers), len(numbers)))
        else:
            middle = vectors.mean(axis=0)
            values = np.asarray(vectors @ (middle / max(float(np.linalg.norm(middle)), 1e-9)), dtype=np.float64)
            similarity = np.asarray(vectors @ vectors.T, dtype=np.float64)
        values[:1] += self.lead
        needs = {**openers_lean(units), **header_rows(units, corpus)} if self.repair else {}
        goal = aim(self.counter.count(assemble(bubble.texts)), None, self.rate)
        pruning = Pruning(bubble, units, numbers, values.round(6), similarity, self.counter, needs)
        return pruning.run("stable-prune", goal, self.lam)
