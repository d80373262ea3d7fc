"""Generators that write several answers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rag.answer import Generation
from rag.errors import RagError
from rag.protocols import Corpus
from rag.types import CompressedContext

__all__ = ["WritesMany"]


@runtime_checkable
class WritesMany(Protocol):
    """A capability of a generator, beside those of `rag.protocols.Generator`."""

    @property
    def batches(self) -> bool:
        """Whether `generate_many` may do better than one answer after the other. May load the model."""

    def generate_many(self, contexts: Sequence[CompressedContext], corpus: Corpus) -> list[Generation | RagError]:
        """What `generate` gives for each, in their order; in place of an answer the error that it raises."""
