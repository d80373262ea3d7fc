"""No compression: the reference that every compressor is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from rag.protocols import Compressor, TokenCounter, service
from rag.text import assemble
from rag.types import Bubble, CompressedContext, Piece


@dataclass(frozen=True, kw_only=True)
class NoneCompressor(Compressor):
    """Passes every chunk on whole."""

    counter: TokenCounter = service()

    def compress(self, bubble: Bubble) -> CompressedContext:
        chunks = [hit.chunk for hit in bubble.hits]
        tokens = self.counter.count(assemble(chunk.text for chunk in chunks))
        pieces = tuple(
            Piece(chunk_id=chunk.id, doc_id=chunk.doc_id, span=chunk.span, text=chunk.text, kept=(chunk.span,))
            for chunk in chunks
        )
        return CompressedContext(
            question=bubble.question,
            pieces=pieces,
            token_count=tokens,
            source_token_count=tokens,
            compressor="none",
        )
