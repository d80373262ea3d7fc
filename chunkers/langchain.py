"""LangChain's text splitters, with exact offsets and a hard limit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import CutLevels
from chunkers._pack import join_small, split
from rag.errors import ConfigError, InputError, missing_extra
from rag.text import safe_cut
from rag.types import Chunk, Document

Splitter = Literal["recursive", "character", "markdown", "html", "latex", "python"]


@dataclass(frozen=True, kw_only=True)
class LangchainChunker(SizedChunker):
    """Wraps a splitter of langchain-text-splitters; sizes are tokens of our counter, white space is kept.

    Offsets are recovered from the pieces and proven, so chunks are exact slices; pieces that the splitter lets pass
    over the limit are split again. Splitters that rewrite their text (headers, JSON, tiktoken) are not offered.
    `overlap_tokens` is the splitter's chunk_overlap.
    """

    splitter: Splitter = "recursive"
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overlap_tokens < self.token_limit:
            raise ConfigError(
                f"langchain: overlap_tokens must be >= 0 and below max_tokens ({self.token_limit}), "
                f"not {self.overlap_tokens}"
            )

    def chunk(self, document: Document) -> list[Chunk]:
        if not document.text.strip():
            return []
        ruler = self.ruler(document)
        cuts = CutLevels(document, ("lines", "sentences"))
        ranges: list[tuple[int, int]] = []
        for start, end in self._safe_ranges(document):
            whole = ruler.fits(start, end)
            ranges.extend([(start, end)] if whole else tiles_of(split(ruler, cuts, start, end), start))
        if not self.overlap_tokens:
            ranges = tiles_of(join_small(ruler, 0, [end for _, end in ranges], 1))
        return self.cut(document, ranges, ruler.tokens)

    def _safe_ranges(self, document: Document) -> list[tuple[int, int]]:
        """The splitter's ranges, their ends moved back to where they part no user-visible character."""
        text, pieces = document.text, self._splitter().split_text(document.text)
        places = locate(document, pieces, overlap=self.overlap_tokens > 0)
        moved = ((safe_cut(text, 0, start), safe_cut(text, 0, end)) for start, end in places)
        return list(dict.fromkeys((start, end) for start, end in moved if start < end))

    def _splitter(self) -> Any:
        try:
            import langchain_text_splitters as langchain
        except ImportError as error:
            raise missing_extra("langchain-text-splitters", "langchain", "the chunker 'langchain'") from error
        options: dict[str, Any] = {
            "chunk_size": self.token_limit,
            "chunk_overlap": self.overlap_tokens,
            "length_function": self._length_function(),
            "keep_separator": True,
            "strip_whitespace": False,
        }
        if self.splitter == "recursive":
            return langchain.RecursiveCharacterTextSplitter(**options)
        if self.splitter == "character":
            return langchain.CharacterTextSplitter(**options)
        return langchain.RecursiveCharacterTextSplitter.from_language(langchain.Language(self.splitter), **options)

    def _length_function(self) -> Callable[[str], int]:
        """Counts at least 1: LangChain would carry white space of length 0 over into the next piece."""
        count = cache(self.counter.count)
        return lambda text: max(1, count(text)) if text else 0


def locate(document: Document, pieces: Sequence[str], *, overlap: bool) -> list[tuple[int, int]]:
    """The ranges of `pieces`, which cover the text in order; InputError when the text does not hold them so.

    Without overlap every piece starts where the one before it ends. With overlap, repeated text leaves several places
    for a piece, so all of them are followed until the last piece has to end where the text ends.
    """
    text = document.text
    routes: list[dict[int, int]] = [{0: 0} if text.startswith(pieces[0]) else {}] if pieces else []
    for before, piece in pairwise(pieces):
        routes.append(_places(text, piece, sorted(routes[-1]), len(before), overlap=overlap))
    last = len(text) - len(pieces[-1]) if pieces else -1
    if not pieces or last not in routes[-1]:
        raise InputError(
            f"{document.source}: cannot prove the offsets of the pieces that LangChain's splitter returned; "
            f"use another splitter, or the chunker 'recursive'"
        )
    starts = [last]
    for route in reversed(routes[1:]):
        starts.append(route[starts[-1]])
    return [(start, start + len(piece)) for start, piece in zip(reversed(starts), pieces, strict=True)]


def _places(text: str, piece: str, starts: Sequence[int], before: int, *, overlap: bool) -> dict[int, int]:
    """Possible starts of `piece`, each with a start of the piece before it, which is `before` characters long.

    A piece starts inside of the one before it, or right at its end, and ends later.
    """
    if not overlap:
        return {start + before: start for start in starts if text.startswith(piece, start + before)}
    places: dict[int, int] = {}
    if starts:
        last = starts[-1] + before + len(piece)
        found = text.find(piece, starts[0] + 1, last)
        while found >= 0:
            at = bisect_left(starts, min(found, found + len(piece) - before)) - 1
            if at >= 0 and found <= starts[at] + before:
                places[found] = starts[at]
            found = text.find(piece, found + 1, last)
    return places
