"""Recursive splitting: cut at the coarsest separator, merge while it fits, go finer only where it does not."""

from __future__ import annotations

from dataclasses import dataclass

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import STRUCTURE, CutLevels
from chunkers._pack import join_small, split
from rag.types import Chunk, Document


@dataclass(frozen=True, kw_only=True)
class RecursiveChunker(SizedChunker):
    """Splits at headings, blocks, blank lines, lines, sentences, then words, and merges greedily up to the limit.

    `min_tokens`: a chunk below it joins a neighbour when both fit together.
    """

    min_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        if not document.text.strip():
            return []
        ruler = self.ruler(document)
        ends = split(ruler, CutLevels(document, STRUCTURE), 0, len(document.text))
        ends = join_small(ruler, 0, ends, self.min_tokens)
        return self.cut(document, tiles_of(ends), ruler.tokens)
