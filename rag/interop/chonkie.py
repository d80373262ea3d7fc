"""Chonkie's chunkers for Chunkwise: any that the caller has made, with exact spans and a hard limit.

Those of Chonkie that need no set-up are plugins: `chunker: {use: chonkie, splitter: sentence}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError
from rag.registry import load

if TYPE_CHECKING:
    from rag.protocols import Chunker, Embedder

__all__ = ["imported"]


def imported(chunker: Any, *, embedder: Embedder, max_tokens: int | None = None) -> Chunker:
    """A Chunkwise chunker that cuts where this Chonkie chunker begins its pieces.

    Chunks are slices of the document that tile it; what is over `max_tokens` (None: what `embedder` reads at once) is
    cut again. InputError when the pieces are not found in the text, ConfigError for something that is no chunker.
    """
    if not callable(getattr(chunker, "chunk", None)):
        raise ConfigError(f"expected a chunker of Chonkie with the method chunk(text), not {chunker!r}")
    plugin = load("chunker", "chonkie")
    made: Chunker = plugin(counter=embedder.counter, embedder=embedder, max_tokens=max_tokens, ready=chunker)
    return made
