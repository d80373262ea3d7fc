"""Small-to-big: small chunks are embedded, each knows the larger span that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from chunkers._base import DEFAULT_TOKENS, SizedChunker, tiles_of
from chunkers._cuts import STRUCTURE, CutLevels
from chunkers._pack import Ruler, join_small, split
from rag.errors import ConfigError
from rag.types import Chunk, Document, Span


@dataclass(frozen=True, kw_only=True)
class ParentChildChunker(SizedChunker):
    """Cuts parents of `parent_tokens` recursively, and children of `max_tokens` inside each parent.

    A parent is a span, never a copy, and is not embedded, so it may exceed the limit of the counter. `max_tokens`:
    None means the limit of the counter or 256, and no more than a quarter of a parent.
    """

    parent_tokens: int = 1024
    min_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)
        if self.parent_tokens < self.token_limit:
            raise ConfigError(
                f"parent-child: parent_tokens must be at least max_tokens ({self.token_limit}), "
                f"not {self.parent_tokens}"
            )

    @property
    def token_limit(self) -> int:
        quarter = max(1, self.parent_tokens // 4)
        return self.max_tokens or min(self.counter.limit or DEFAULT_TOKENS, quarter)

    def chunk(self, document: Document) -> list[Chunk]:
        text = document.text
        if not text.strip():
            return []
        children = self.ruler(document)
        growth = -(-self.parent_tokens // self.token_limit)
        parents = Ruler(
            document,
            self.counter,
            max_tokens=self.parent_tokens,
            max_chars=self.char_limit * growth,
            tokens=children.tokens,
        )
        cuts = CutLevels(document, STRUCTURE)
        chunks: list[Chunk] = []
        ends = join_small(parents, 0, split(parents, cuts, 0, len(text)), self.min_tokens)
        for start, end in tiles_of(ends):
            inner = join_small(children, start, split(children, cuts, start, end), self.min_tokens)
            ranges = tiles_of(inner, start)
            chunks.extend(self.cut(document, ranges, children.tokens, parent=Span(start, end)))
        return chunks
