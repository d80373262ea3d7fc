"""What the dense retrievers share: exact cosine over given rows, and hits from rows and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.errors import ConfigError
from rag.types import Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Corpus, Rows, Vectors

    Scores = NDArray[np.float64]

SCORE_DIGITS = 6
"""Cosines are rounded before they are ordered: the last bits hang on the summation order of the kernel used."""

_AT_ONCE = 4096


def best(rows: Rows, scores: NDArray[np.floating], k: int) -> tuple[Rows, Scores]:
    """The k best (rows, rounded scores), best first, ties by row."""
    import numpy as np

    rounded = scores.astype(np.float64).round(SCORE_DIGITS)
    order = np.lexsort((rows, -rounded))[:k]
    return rows[order], rounded[order]


def exact_best(corpus: Corpus, rows: Sequence[int] | Rows, vector: Vectors, k: int) -> tuple[Rows, Scores]:
    """Cosine of `vector` (dim,) with the stored vectors of `rows`, cut to the k best.

    Summed in 64 bits, so that a score depends on the two vectors alone and not on what is computed beside it.
    Memory: 4,096 vectors at a time.
    """
    import numpy as np

    wanted = np.asarray(rows, dtype=np.int64)
    wide = vector.astype(np.float64)
    scores = np.empty(len(wanted), dtype=np.float64)
    for at in range(0, len(wanted), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        # einsum starts no threads: for so little work, BLAS's own and those of FAISS would wait for each other
        scores[part] = np.einsum("ij,j->i", corpus.vectors(wanted[part].tolist())[1].astype(np.float64), wide)
    return best(wanted, scores, k)


def to_hits(corpus: Corpus, rows: Rows, scores: Scores, retriever: str) -> list[Hit]:
    """Hits ranked 1..n in the order given."""
    chunks = corpus.chunks([int(row) for row in rows])
    return [
        Hit(chunk=chunk, score=float(score), rank=rank, retriever=retriever, parts={retriever: float(score)})
        for rank, (chunk, score) in enumerate(zip(chunks, scores, strict=True), start=1)
    ]


def check_dimension(stored: int, expected: int, fingerprint: str) -> None:
    """ConfigError when the embedder cannot have made the stored vectors."""
    if stored != expected:
        raise ConfigError(
            f"the index holds vectors of length {stored}, the embedder {fingerprint!r} makes length {expected}; "
            "configure the embedder that the index was built with, or ingest again into a new directory"
        )
