"""Provence (Chirkova et al., ICLR 2025, arXiv 2501.16214): the pass that reranks also says which tokens to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressors._prune import Pruning, header_rows, openers_lean
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Embedder, TokenCounter, service
from rag.spans.features import UNIT_CHARS
from rag.spans.keep_head import Reading, read
from rag.spans.pieces import aim, check_size, unchanged
from rag.spans.units import Units, units_of_bubble
from rag.text import assemble
from rag.types import Bubble, CompressedContext, Decision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProvenceCompressor(Compressor):
    """Whole sentences (rows, list items, blocks of code) by the keep probabilities of their tokens.

    Question and chunk are read together in one pass of MiniLM, whatever the bubble kept of the chunk; a small trained
    head (card: rag/spans/keep_head.md) gives each token a probability. A sentence of which more than half of the
    tokens are over `threshold` is kept: their number follows from the question, and may be 0. With `target` (tokens)
    or `rate` (share of the tokens) the vote does not count: sentences with the highest mean probability fill the room.
    The retriever `provence-rerank` with the same embedder scores chunks by the same pass, so that compressing what it
    has just read costs no pass. `repair`: a sentence that opens with a reference or a connective brings the one before
    it along, a row of a table its header row, where that fits.

    With another embedder than all-MiniLM-L6-v2, or none, a head that knows words alone decides, and the decisions
    say so.

    Deviations: labels are the evidence of public sets, not the choice of a large model, so probabilities and the
    threshold (.1 or .5 in the paper) are lower; the encoder stays frozen; the chunk's header is read before its text; a
    sentence longer than `unit_chars` characters is parted; a chunk that does not fit beside its question is read in
    windows. Checkpoints of Provence itself, which need remote code, are not loaded.
    """

    target: int | None = None
    rate: float | None = None
    threshold: float = 0.05
    repair: bool = True
    unit_chars: int = UNIT_CHARS
    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("provence", self.target, 1.0 if self.rate is None else self.rate)
        if not 0.0 < self.threshold < 1.0:
            raise ConfigError(f"provence: threshold must be above 0 and below 1, not {self.threshold}")
        if self.unit_chars < 20:
            raise ConfigError(f"provence: unit_chars must be >= 20, not {self.unit_chars}")

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        import numpy as np

        size = self.counter.count(assemble(bubble.texts))
        bound = self.target is not None or self.rate is not None
        goal = aim(size, self.target, 1.0 if self.rate is None else self.rate)
        if bound and goal >= size:
            return unchanged(bubble, self.counter, "provence")
        units = units_of_bubble(bubble, corpus, self.unit_chars)
        readings = read(bubble.question, [hit.chunk.embed_text for hit in bubble.hits], self.embedder)
        means, votes = self._judged(bubble, units, readings)
        numbers = [number for number, twin in enumerate(units.twins) if twin < 0 and (bound or votes[number] > 0.5)]
        needs = {**openers_lean(units), **header_rows(units, corpus)} if self.repair else {}
        pruning = Pruning(
            bubble,
            units,
            numbers,
            means[numbers],
            np.zeros((len(numbers), len(numbers))),
            self.counter,
            needs,
            [{"keep": round(float(means[one]), 6), "vote": round(float(votes[one]), 6)} for one in numbers],
        )
        made = pruning.run("provence", goal, 0.0)
        decisions = self._told(made.decisions, bound, any(one.words for one in readings))
        return replace(made, decisions=(*decisions, *self._voted_out(bubble, units, means, votes, numbers, made)))

    def _judged(self, bubble: Bubble, units: Units, readings: Sequence[Reading]) -> tuple[Values, Values]:
        """(units,) mean keep probability of the tokens of a unit, and the share of them that is over the threshold."""
        import numpy as np

        starts = [np.array([start for start, _ in one.places], dtype=np.int64) for one in readings]
        sums = [np.concatenate([[0.0], np.cumsum(one.keep, dtype=np.float64)]) for one in readings]
        over = [np.concatenate([[0], np.cumsum(one.keep > self.threshold)]) for one in readings]
        means, votes = np.zeros(len(units.units)), np.zeros(len(units.units))
        for number, unit in enumerate(units.units):
            chunk = bubble.hits[unit.owner].chunk
            shift = len(chunk.embed_text) - len(chunk.text) - chunk.span.start
            edges = (unit.span.start + shift, unit.span.end + shift)
            first, last = (int(edge) for edge in np.searchsorted(starts[unit.owner], edges))
            if last > first:
                means[number] = round((sums[unit.owner][last] - sums[unit.owner][first]) / (last - first), 6)
                votes[number] = (over[unit.owner][last] - over[unit.owner][first]) / (last - first)
        return means, votes

    def _told(self, decisions: Iterable[Decision], bound: bool, words: bool) -> list[Decision]:
        """The ledger in words of this method."""
        reasons: Mapping[str, str] = {
            "largest gain": "highest keep probability" if bound else "more than half of its tokens are kept"
        }
        by = " (by words alone: this embedder is not the head's own)" if words else ""
        return [replace(one, reason=reasons.get(one.reason, one.reason) + by) for one in decisions]

    def _voted_out(
        self,
        bubble: Bubble,
        units: Units,
        means: Values,
        votes: Values,
        numbers: Sequence[int],
        made: CompressedContext,
    ) -> list[Decision]:
        """A line for each sentence that the vote leaves out; one that a kept sentence leans on is kept all the same."""
        kept = {piece.chunk_id: piece.kept for piece in made.pieces}
        lines = []
        for number in sorted(set(range(len(units.units))) - set(numbers)):
            unit = units.units[number]
            if units.twins[number] < 0:
                chunk_id = bubble.hits[unit.owner].chunk.id
                stays = any(span.contains(unit.span) for span in kept.get(chunk_id, ()))
                lines.append(
                    Decision(
                        chunk_id=chunk_id,
                        action="keep" if stays else "drop",
                        relevance=float(means[number]),
                        gain=float(means[number]),
                        redundancy=0.0,
                        tokens=self.counter.count(unit.text),
                        reason="a kept sentence leans on it" if stays else "half of its tokens or more are not kept",
                        span=unit.span,
                        parts={"keep": float(means[number]), "vote": round(float(votes[number]), 6)},
                    )
                )
        return lines
