"""An embedder that remembers: moving a slider over one document embeds no sentence twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rag.protocols import Embedder, TokenCounter

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["KeptEmbedder"]


class KeptEmbedder(Embedder):
    """The same embedder; a text that it has seen is not embedded again. `texts` counts those that were."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self._rows: dict[str, Any] = {}
        self.matches_meaning = inner.matches_meaning  # type: ignore[misc]  # a constant of the class there

    @property
    def texts(self) -> int:
        """How many texts the encoder has read."""
        return len(self._rows)

    @property
    def light(self) -> Embedder:
        return self._inner.light

    @property
    def dimension(self) -> int:
        return self._inner.dimension

    @property
    def counter(self) -> TokenCounter:
        return self._inner.counter

    @property
    def fingerprint(self) -> str:
        return self._inner.fingerprint

    def agrees_with(self, fingerprint: str) -> bool:
        return self._inner.agrees_with(fingerprint)

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        fresh = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if fresh:
            self._rows.update(zip(fresh, self._inner.embed(fresh), strict=True))
        return np.stack([self._rows[text] for text in texts]) if texts else self._inner.embed([])

    @property
    def reads_within(self) -> bool:
        return self._inner.reads_within

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        return self._inner.embed_within(pieces)

    def embed_question(self, text: str) -> Vectors:
        return self._inner.embed_question(text)
