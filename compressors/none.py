"""No compression: the reference that every compressor is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from rag.protocols import Compressor, TokenCounter, service
from rag.text import assemble
from rag.types import Bubble, CompressedContext, Piece


@dataclass(frozen=True, kw_only=True)
class NoneCompressor(Compressor):
    """Passes on whole what was selected."""

    counter: TokenCounter = service()

    def compress(self, bubble: Bubble) -> CompressedContext:
        texts = bubble.texts
        tokens = self.counter.count(assemble(texts))
        pieces = tuple(
            Piece(chunk_id=hit.chunk.id, doc_id=hit.chunk.doc_id, span=hit.chunk.span, text=text, kept=kept)
            for hit, text, kept in zip(bubble.hits, texts, bubble.spans, strict=True)
        )
        return CompressedContext(
            question=bubble.question,
            pieces=pieces,
            token_count=tokens,
            source_token_count=tokens,
            compressor="none",
        )
