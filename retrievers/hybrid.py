"""Several retrievers fused: reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009) or a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Retriever, Searcher, nested
from rag.types import Chunk, Hit


@dataclass(frozen=True, kw_only=True)
class HybridRetriever(Retriever):
    """Asks every part for a pool of hits and fuses them by chunk.

    `rrf`: sum of weight / (rrf_k + rank). `weighted`: sum of weight * score, scores min-max scaled inside each pool,
    weights scaled to sum 1. A part that does not find a chunk adds nothing. No `weights`: all equal.
    `pool=0` asks each part for max(50, k) hits. `Hit.parts` keeps score (`bm25`) and rank (`bm25.rank`) of every part.
    """

    parts: Any = nested("retriever", ("faiss-dense", "bm25"))
    k: int = 40
    fusion: Literal["rrf", "weighted"] = "rrf"
    rrf_k: int = 60
    weights: tuple[float, ...] = ()
    pool: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not self.parts or isinstance(self.parts[0], str):
            raise ConfigError(f"hybrid: parts must be a tuple of at least one retriever, not {self.parts!r}")
        if self.fusion not in ("rrf", "weighted"):
            raise ConfigError(f"hybrid: fusion must be rrf or weighted, not {self.fusion!r}")
        if self.k < 1 or self.rrf_k < 0 or self.pool < 0:
            raise ConfigError(
                f"hybrid: k must be >= 1, rrf_k and pool >= 0, not k={self.k}, rrf_k={self.rrf_k}, pool={self.pool}"
            )
        if self.weights and (len(self.weights) != len(self.parts) or min(self.weights) < 0 or not sum(self.weights)):
            raise ConfigError(
                f"hybrid: weights must be {len(self.parts)} numbers >= 0 (one a part) that are not all 0, "
                f"not {self.weights!r}"
            )

    @property
    def uses_vectors(self) -> bool:
        return any(part.uses_vectors for part in self.parts)

    def open(self, corpus: Corpus) -> Searcher:
        searchers: list[Searcher] = []
        try:
            for part in self.parts:
                searchers.append(part.open(corpus))
        except BaseException:
            _close(searchers)
            raise
        return _HybridSearcher(self, corpus, searchers)

    def check(self, corpus: Corpus) -> list[str]:
        """What its parts find."""
        return [problem for part in self.parts for problem in part.check(corpus)]


class _HybridSearcher(Searcher):
    def __init__(self, retriever: HybridRetriever, corpus: Corpus, searchers: Sequence[Searcher]) -> None:
        self._retriever = retriever
        self._corpus = corpus
        self._searchers = searchers

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if k < 1:
            return []
        pool = max(self._retriever.pool or 50, k)
        return self._fuse([searcher.search(question, pool, where) for searcher in self._searchers])[:k]

    def close(self) -> None:
        _close(self._searchers)

    def _fuse(self, lists: Sequence[Sequence[Hit]]) -> list[Hit]:
        retriever = self._retriever
        weights = retriever.weights or (1.0,) * len(lists)
        chunks: dict[str, Chunk] = {}
        parts: dict[str, dict[str, float]] = {}
        fused: dict[str, float] = {}
        for name, hits, weight in zip(_names(lists), lists, weights, strict=True):
            scaled = _min_max([hit.score for hit in hits])
            for hit, share in zip(hits, scaled, strict=True):
                chunk_id = hit.chunk.id
                chunks.setdefault(chunk_id, hit.chunk)
                parts.setdefault(chunk_id, {}).update({name: hit.score, f"{name}.rank": float(hit.rank)})
                value = weight / (retriever.rrf_k + hit.rank) if retriever.fusion == "rrf" else share * weight
                fused[chunk_id] = fused.get(chunk_id, 0.0) + value
        scale = sum(weights) if retriever.fusion == "weighted" else 1.0
        scores = {chunk_id: round(value / scale, 12) for chunk_id, value in fused.items()}  # sums in any order tie
        row_of = dict(zip(scores, self._corpus.rows_of(list(scores)), strict=True))
        order = sorted(scores, key=lambda chunk_id: (-scores[chunk_id], row_of[chunk_id]))
        return [
            Hit(
                chunk=chunks[chunk_id],
                score=scores[chunk_id],
                rank=rank,
                retriever="hybrid",
                parts={**parts[chunk_id], retriever.fusion: scores[chunk_id]},
            )
            for rank, chunk_id in enumerate(order, start=1)
        ]


def _names(lists: Sequence[Sequence[Hit]]) -> list[str]:
    """The retriever name of each list; a second list of the same name becomes `name#2`."""
    names: list[str] = []
    for hits in lists:
        name = hits[0].retriever if hits else ""
        same = sum(other.split("#")[0] == name for other in names)
        names.append(f"{name}#{same + 1}" if same and name else name)
    return names


def _min_max(scores: Sequence[float]) -> list[float]:
    """Scores scaled to [0, 1]; equal scores all become 1."""
    if not scores:
        return []
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _close(searchers: Sequence[Searcher]) -> None:
    for searcher in searchers:
        searcher.close()
