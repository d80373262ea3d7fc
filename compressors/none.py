"""No compression: the reference that every compressor is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from rag.protocols import Compressor, Corpus, TokenCounter, service
from rag.spans.pieces import unchanged
from rag.types import Bubble, CompressedContext


@dataclass(frozen=True, kw_only=True)
class NoneCompressor(Compressor):
    """Passes on whole what was selected."""

    counter: TokenCounter = service()

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        return unchanged(bubble, self.counter, "none")
