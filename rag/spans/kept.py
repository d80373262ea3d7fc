"""Services that remember: whoever works on one document again and again tokenises and embeds it once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rag.protocols import Embedder, TokenCounter
from rag.spans.around import AroundEmbedder

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["KeptCounter", "KeptEmbedder"]


class KeptCounter(TokenCounter):
    """The same counter; a text that it has seen is not tokenised again. For one document, then thrown away."""

    def __init__(self, inner: TokenCounter) -> None:
        self.name, self.limit, self.additive = inner.name, inner.limit, inner.additive
        self._inner = inner
        self._counts: dict[str, int] = {}
        self._offsets: dict[str, list[tuple[int, int]]] = {}

    def count(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = self._inner.count(text)
        return self._counts[text]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        if text not in self._offsets:
            self._offsets[text] = self._inner.offsets(text)
        return self._offsets[text]


class KeptEmbedder(AroundEmbedder):
    """The same embedder; a text that it has seen is not embedded again. `texts` counts those that were."""

    def __init__(self, inner: Embedder, counter: TokenCounter | None = None) -> None:
        self.inner = inner
        self._counter = counter or inner.counter
        self._rows: dict[str, Any] = {}

    @property
    def texts(self) -> int:
        """How many texts the encoder has read."""
        return len(self._rows)

    @property
    def counter(self) -> TokenCounter:
        return self._counter

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        fresh = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if fresh:
            self._rows.update(zip(fresh, self.inner.embed(fresh), strict=True))
        if not texts:
            return self.inner.embed([])
        return np.stack([self._rows[text] for text in texts])
