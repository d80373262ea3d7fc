"""Reranking by the pass that also compresses (Provence: Chirkova et al., ICLR 2025, arXiv 2501.16214)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rag.protocols import Corpus, Embedder, nested, service
from rag.spans.keep_head import read
from rag.types import Chunk
from retrievers._rerank import Reranker, Scored, Scorer, check_numbers


@dataclass(frozen=True, kw_only=True)
class ProvenceRerankRetriever(Reranker):
    """Scores a chunk by the probability that it holds evidence, read together with the question by MiniLM.

    A small trained head on the frozen encoder (card: rag/spans/keep_head.md) makes the score and, in the same pass,
    keep probabilities of the tokens. The embedder keeps the last 512 readings, so the compressor `provence` after this
    reranker costs no further pass. Headers are read with the text. With another embedder than all-MiniLM-L6-v2, or
    none, a head that knows words alone decides, and `Hit.parts["provence-rerank.words"]` is 1.

    Deviations: the score is trained on evidence of public sets, not on that of another reranker.
    """

    name: ClassVar[str] = "provence-rerank"
    natural: ClassVar[bool] = True

    retriever: Any = nested("retriever", "hybrid")
    embedder: Embedder | None = service(default=None)
    k: int = 40
    pool: int = 50
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self)

    def scorer(self, corpus: Corpus) -> Scorer:
        def scored(question: str, chunks: Sequence[Chunk]) -> list[Scored]:
            found = read(question, [chunk.embed_text for chunk in chunks], self.embedder)
            return [(one.score, {"provence-rerank.words": 1.0} if one.words else {}) for one in found]

        return scored
