"""METEORA's selection without a number of hits: rationales, the elbow of the scores, and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, service
from rag.spans.features import Words, question_words
from rag.types import Bubble, Hit
from retrievers.selectors._ledger import Selection, is_duplicate
from retrievers.selectors._rationales import rationales

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ElbowSelector(Selector):
    """Evidence chunk selection of METEORA (arXiv 2505.16014), with rationales made by rules.

    Taken are, in this order: for each rationale the chunk with the largest cosine that no other has; the chunks before
    the elbow, sorted by cosine with the mean of the rationales, of the best `pool` chunks; `window` chunks before and
    after all of these. Rationales are the question, its keywords, a statement made of it, its names and numbers, and
    the question with words of the best hits.

    `rule`: `max-gap`, the default, puts the elbow at the largest drop; `z`, the paper's, at the first drop with a
    z-score above 1, else at the largest rise between drops. Real scores fall fastest at the top, so `z` mostly keeps
    one chunk, the more so with a larger `pool`.

    Deviations: the paper's rationales are written by a tuned model of 8 billion parameters. The question has the first
    hit of the retriever, which has read it already. A token budget ends the selection. Without vectors, scores are
    BM25 over the hits.
    """

    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    budget: int = 1200
    rule: Literal["max-gap", "z"] = "max-gap"
    pool: int = 20
    window: int = 1

    def __post_init__(self) -> None:
        if self.rule not in ("max-gap", "z"):
            raise ConfigError(f"elbow: rule must be max-gap or z, not {self.rule!r}")
        for name, low in (("budget", 1), ("pool", 1), ("window", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"elbow: {name} must be >= {low}, not {getattr(self, name)}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        ranked = sorted(hits, key=lambda hit: hit.rank)
        selection = Selection(self.counter, self.budget)
        if not ranked:
            return selection.bubble(question)
        told = rationales(question, [hit.chunk.text for hit in ranked])
        single, pooled = self._scores(told, ranked, corpus)
        order = sorted(range(len(ranked)), key=lambda at: (-pooled[at], at))[: self.pool]
        before = order[: elbow([float(pooled[at]) for at in order], self.rule)]
        wanted = {at: f"best for the rationale {told[row]!r}" for row, at in enumerate(paired(single))}
        for at in before:
            wanted.setdefault(at, f"before the elbow, {len(before)} of {len(order)}")
        for at, reason in wanted.items():
            selection.offer(ranked[at], "take", reason, gain=float(pooled[at]))
        self._expand(selection, ranked, list(wanted), corpus)
        offered = {decision.chunk_id for decision in selection.bubble(question).decisions}
        for at, hit in enumerate(ranked):
            if hit.chunk.id not in offered:
                selection.skip(hit, "skip-elbow", "after the elbow, and no neighbour", gain=float(pooled[at]))
        return selection.bubble(question)

    def _expand(self, selection: Selection, ranked: Sequence[Hit], wanted: Sequence[int], corpus: Corpus) -> None:
        known = {hit.chunk.id: hit for hit in ranked}
        seen = {ranked[at].chunk.id for at in wanted}
        for at in wanted if self.window else ():
            anchor = ranked[at]
            for chunk in corpus.neighbours(anchor.chunk.id, self.window, self.window):
                if chunk.id in seen:
                    continue
                seen.add(chunk.id)
                made = Hit(chunk=chunk, score=0.0, rank=anchor.rank, retriever=anchor.retriever)
                hit = known.get(chunk.id, made)
                if any(is_duplicate(ranked[one].chunk, chunk) for one in wanted):
                    selection.skip(hit, "skip-duplicate", "lies over a chunk that was wanted", redundancy=1.0)
                else:
                    selection.offer(hit, "expand", f"beside {anchor.chunk.id}", gain=0.0)

    def _scores(self, told: Sequence[str], hits: Sequence[Hit], corpus: Corpus) -> tuple[Scores, Scores]:
        """(rationales, hits) of each rationale and (hits,) of their mean, rounded."""
        import numpy as np

        texts = [hit.chunk.text for hit in hits]
        if self.embedder is not None:
            try:
                _, matrix = corpus.vectors(corpus.rows_of([hit.chunk.id for hit in hits]))
            except ConfigError:  # the index was made without an embedder
                pass
            else:
                vectors = np.stack([self.embedder.embed_question(one) for one in told])
                mean = vectors.mean(axis=0)
                mean = mean / (float(np.linalg.norm(mean)) or 1.0)
                return (vectors @ matrix.T).astype(np.float64).round(6), (matrix @ mean).astype(np.float64).round(6)
        single = []
        for one in told:
            words = Words(question_words(one), texts)
            single.append(words.bm25(words.idf()))
        scores = np.stack(single).round(6)
        return scores, scores.mean(axis=0).round(6)


def paired(scores: Scores) -> list[int]:
    """For each rationale, a row, the best column that is still free; the first has column 0. Ties by column."""
    rows, columns = scores.shape
    taken = [0]
    for row in range(1, min(rows, columns)):
        free = [at for at in range(columns) if at not in taken]
        taken.append(max(free, key=lambda at: (scores[row, at], -at)))
    return taken


def elbow(scores: Sequence[float], rule: Literal["max-gap", "z"]) -> int:
    """How many of the falling `scores` stand before the elbow; with fewer than 3, min(max(n // 3, 1), 5) of n."""
    from statistics import fmean, pstdev

    drops = [round(one - other, 6) for one, other in pairwise(scores)]
    if len(drops) < 2:
        return min(max(len(scores) // 3, 1), 5)
    if rule == "max-gap":
        return drops.index(max(drops)) + 1
    mean, spread = fmean(drops), pstdev(drops)
    steep = next((at for at, drop in enumerate(drops) if spread > 0 and (drop - mean) / spread > 1.0), None)
    if steep is not None:
        return steep + 1
    rises = [round(other - one, 6) for one, other in pairwise(drops)]
    return rises.index(max(rises)) + 1
