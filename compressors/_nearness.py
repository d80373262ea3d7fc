"""Vectors of texts of any length, and marginal information gain over vectors (COMI, arXiv 2602.01719)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.protocols import Corpus, Embedder, TokenCounter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

    Floats = NDArray[np.float64]

__all__ = ["gains", "head_vectors", "softmax"]


def head_vectors(embedder: Embedder, texts: Sequence[str], corpus: Corpus) -> Vectors:
    """(n, d) unit vectors of the texts, each up to what the embedder reads."""
    return corpus.sentence_vectors([_head(text.strip(), embedder.counter) for text in texts], embedder)


def _head(text: str, counter: TokenCounter) -> str:
    """The text up to the limit of the counter; shorter, where the cut makes more tokens of a word."""
    if counter.limit is None or counter.count(text) <= counter.limit:
        return text
    places = counter.offsets(text)
    for most in range(counter.limit, 0, -1):
        head = text[: places[most - 1][1]]
        if counter.count(head) <= counter.limit:
            return head
    return ""


def gains(vectors: Floats, question: Floats, alpha: float, beta: float) -> Floats:
    """(n,) alpha * cosine with the question - beta * largest cosine with another row; rows and question of length 1."""
    import numpy as np

    among = vectors @ vectors.T
    np.fill_diagonal(among, -np.inf)
    redundancy = among.max(axis=1) if len(vectors) > 1 else np.zeros(len(vectors))
    made: Floats = alpha * (vectors @ question) - beta * redundancy
    return made


def softmax(values: Floats, temperature: float) -> Floats:
    """(n,) shares that add up to 1."""
    import numpy as np

    raised = np.exp((values - values.max()) / temperature)
    made: Floats = raised / raised.sum()
    return made
