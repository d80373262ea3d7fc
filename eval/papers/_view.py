"""A document as embedded sentences, and an unlimited counter: what the papers' tables are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rag.protocols import Embedder, SentenceView, TokenCounter
from rag.text import TokenMap, sentence_spans
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

__all__ = ["EmbeddedSentences", "Unlimited", "chunks_at"]


@dataclass(frozen=True)
class Unlimited(TokenCounter):
    """Another counter without its limit: papers cut chunks that no encoder of ours reads whole."""

    inner: TokenCounter
    limit = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def additive(self) -> bool:  # type: ignore[override]
        return self.inner.additive

    def count(self, text: str) -> int:
        return self.inner.count(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return self.inner.offsets(text)


@dataclass(frozen=True)
class EmbeddedSentences(SentenceView):
    """The sentences of one document; the embedder reads those over its limit in windows."""

    document: Document
    embedder: Embedder

    @cached_property
    def starts(self) -> Sequence[int]:
        return [span.start for span in sentence_spans(self.document)]

    @cached_property
    def ends(self) -> Sequence[int]:
        return [*self.starts[1:], len(self.document.text)]

    @cached_property
    def map(self) -> TokenMap:
        """Tokens of any range of the text."""
        return TokenMap(self.embedder.counter, self.document.text)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        import numpy as np

        return np.array([self.map.count(start, end) for start, end in zip(self.starts, self.ends, strict=True)])

    @cached_property
    def vectors(self) -> Vectors:
        text = self.document.text
        return self.embedder.embed([text[start:end] for start, end in zip(self.starts, self.ends, strict=True)])


def chunks_at(view: EmbeddedSentences, ranges: Sequence[tuple[int, int]], name: str) -> list[Chunk]:
    """Chunks at these ranges of characters."""
    return [Chunk.cut(view.document, start, end, counter=view.map, chunker=name) for start, end in ranges]
