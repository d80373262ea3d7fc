"""What a question asks of the encoder, counted so that neither order nor caches matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.chunks.vectors import CountingEmbedder

if TYPE_CHECKING:
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.protocols import Embedder, Vectors

__all__ = ["Meter"]

_OF_ENCODER = ("calls", "texts", "characters")


class Meter:
    """Stands between a pipeline that has built no part yet, an open index, and the encoder.

    Vectors of sentences are read from the index, which keeps them: how many are read is a count of its own, and which
    of them had to be made first depends on the questions before, so those calls are told apart.
    """

    def __init__(self, pipeline: Pipeline, index: Index) -> None:
        self._embedder = CountingEmbedder(inner=pipeline.embedder)
        self._read = index.corpus.sentence_vectors
        vars(pipeline)["embedder"] = self._embedder
        vars(index.corpus)["sentence_vectors"] = self._sentence_vectors
        self._sentences = self._made = 0

    def take(self) -> dict[str, int]:
        """calls, texts, characters, sentences and, of those, made, since the last time."""
        counts = self._embedder.counts
        found = {name: int(counts[name]) for name in _OF_ENCODER}
        found |= {"sentences": self._sentences, "made": self._made}
        counts.update(dict.fromkeys(_OF_ENCODER, 0.0))
        self._sentences = self._made = 0
        return found

    def _sentence_vectors(self, texts: Sequence[str], embedder: Embedder) -> Vectors:
        counts = self._embedder.counts
        before = dict(counts)
        vectors = self._read(texts, embedder)
        self._sentences += len(texts)
        self._made += int(counts["texts"] - before["texts"])
        counts.update(before)
        return vectors
