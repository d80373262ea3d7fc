"""Whole sentences, packed greedily."""

from __future__ import annotations

from dataclasses import dataclass

from chunkers._base import SizedChunker
from chunkers._cuts import CutLevels
from chunkers._pack import pack, split
from rag.types import Chunk, Document


@dataclass(frozen=True, kw_only=True)
class SentenceChunker(SizedChunker):
    """Packs whole sentences up to the limit; a sentence over the limit is cut at line ends, then at words.

    `overlap_sentences`: how many sentences at the end of a chunk the next one repeats, at most.
    """

    overlap_sentences: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("overlap_sentences", self.overlap_sentences, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        text = document.text
        if not text.strip():
            return []
        ruler = self.ruler(document)
        finer = CutLevels(document, ("lines",))
        ends = [*CutLevels(document, ("sentences",)).points(0), len(text)]
        ranges = pack(ruler, ends, lambda start, end: split(ruler, finer, start, end), self.overlap_sentences)
        return self.cut(document, ranges, ruler.tokens)
