"""The embedder of a run: vectors are remembered, and none depends on what was embedded beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from eval.chunks.vectors import CachedEmbedder
from rag.protocols import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.protocols import Vectors

__all__ = ["RunEmbedder"]


@dataclass(frozen=True, kw_only=True)
class _Single(CachedEmbedder):
    """Embeds each text alone and once. A vector from a batch may differ in its last bit with the texts around it,
    and then an answer would depend on which questions were asked before it.
    """

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        rows = [super(_Single, self).embed([text]) for text in texts]
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class RunEmbedder(CachedEmbedder):
    """As CachedEmbedder, but for questions, which are kept in memory only, and `light`, which remembers as well."""

    _asked: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @cached_property
    def light(self) -> Embedder:
        light = self.inner.light
        return self if light is self.inner else _Single(inner=light)

    def embed_question(self, text: str) -> Vectors:
        if text not in self._asked:
            self._asked[text] = self.inner.embed_question(text)
        return self._asked[text]
