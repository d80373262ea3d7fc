"""An embedder around another one: all that it does not say itself, the inner one says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.protocols import Embedder, TokenCounter

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["AroundEmbedder"]


class AroundEmbedder(Embedder):
    """What remembers, counts or gathers overrides the calls that it means; `inner` has the model."""

    inner: Embedder

    @property
    def matches_meaning(self) -> bool:  # type: ignore[override]  # a constant of the class there
        return self.inner.matches_meaning

    @property
    def light(self) -> Embedder:
        return self.inner.light

    @property
    def dimension(self) -> int:
        return self.inner.dimension

    @property
    def counter(self) -> TokenCounter:
        return self.inner.counter

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def agrees_with(self, fingerprint: str) -> bool:
        return self.inner.agrees_with(fingerprint)

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self.inner.embed(texts)

    @property
    def reads_within(self) -> bool:
        return self.inner.reads_within

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Vectors:
        return self.inner.embed_within(pieces)

    def embed_question(self, text: str) -> Vectors:
        return self.inner.embed_question(text)
