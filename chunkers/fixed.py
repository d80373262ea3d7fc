"""Fixed windows of tokens, the plain baseline."""

from __future__ import annotations

from dataclasses import dataclass

from chunkers._base import SizedChunker
from chunkers._pack import Ruler
from rag.errors import ConfigError
from rag.text import safe_cut
from rag.types import Chunk, Document


@dataclass(frozen=True, kw_only=True)
class FixedChunker(SizedChunker):
    """Windows of `max_tokens` tokens, cut at token boundaries and nowhere inside a user-visible character.

    `overlap_tokens`: how many tokens at the end of a window the next one repeats, at most.
    """

    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overlap_tokens < self.token_limit:
            raise ConfigError(
                f"fixed: overlap_tokens must be >= 0 and below max_tokens ({self.token_limit}), "
                f"not {self.overlap_tokens}"
            )

    def chunk(self, document: Document) -> list[Chunk]:
        if not document.text.strip():
            return []
        ruler = self.ruler(document)
        ranges: list[tuple[int, int]] = []
        start = end = 0
        while end < len(document.text):
            longer = ruler.window(start, len(document.text))
            if longer <= end:  # the overlap leaves no room for anything new
                start = end
                continue
            end = longer
            ranges.append((start, end))
            start = self._overlap_start(ruler, start, end)
        return self.cut(document, ranges, ruler.tokens)

    def _overlap_start(self, ruler: Ruler, start: int, end: int) -> int:
        """Where the next window starts: after `start`, with at most `overlap_tokens` up to `end`."""
        for tokens in range(self.overlap_tokens, 0, -1):
            at = safe_cut(ruler.text, start, max(start + 1, ruler.tokens.reach_back(end, tokens)))
            if at < end and ruler.tokens.count(at, end) <= self.overlap_tokens:
                return at
        return end
