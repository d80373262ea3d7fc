"""Structure-aware chunks: sections by heading path, whole tables and code blocks, table headers repeated."""

from __future__ import annotations

from dataclasses import dataclass

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import CutLevels
from chunkers._headers import Headers
from chunkers._pack import join_small, split
from rag.types import Chunk, Document


@dataclass(frozen=True, kw_only=True)
class MarkdownChunker(SizedChunker):
    """Cuts at the headings and blocks of any parsed format: a chunk holds one section, or small sections side by side.

    A heading stays with the text under it. A table or code block stays whole where it fits; a larger one is cut
    between rows or lines, and later parts of a table carry its header row in `Chunk.header`.
    `heading_header`: put the heading path above a chunk into `Chunk.header`, which is embedded with the text.
    `min_tokens`: a section below it joins a neighbour under the same parent heading when both fit together.
    """

    heading_header: bool = True
    min_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        text = document.text
        if not text.strip():
            return []
        headers = Headers(self, document, path=self.heading_header)
        ruler = self.ruler(document, header=headers.at)
        sections = CutLevels(document, ("headings",))
        inside = CutLevels(document, ("blocks", "parts", "blank-lines", "lines", "sentences"))
        borders = sections.points(len(sections) - 1) if len(sections) else []
        ends: list[int] = []
        for start, end in tiles_of([*borders, len(text)]):
            ends.extend(split(ruler, inside, start, end))
        ends = join_small(ruler, 0, ends, self.min_tokens, headers.is_under)
        return self.cut(document, tiles_of(ends), ruler.tokens, headers.at)
