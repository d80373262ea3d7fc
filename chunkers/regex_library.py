"""Cuts a document at the lines that begin something new in it: numbered headings, articles, speakers, dates, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from chunkers._base import SizedChunker, tiles_of
from chunkers._cuts import STRUCTURE, CutLevels
from chunkers._pack import Ruler
from chunkers._regexes import LIBRARY, Fit, Lines, fit, section_ends
from rag.errors import ConfigError
from rag.types import Chunk, Document

_BEST = 4
"""So many patterns are tried in pairs, and recorded."""

_PAIR_GAIN = 0.02
"""A pair must be better than its better half by this."""


@dataclass(frozen=True, kw_only=True)
class RegexLibraryChunker(SizedChunker):
    """Cuts before every line that one pattern of a fixed library matches: the pattern that fits this document best.

    A pattern is scored by the number of its matches, the regularity of the gaps between them and the share of the text
    in sections of a size between `min_tokens` and the limit (all in [0, 1], equal weights); pairs of good patterns are
    tried too. Sections over the limit are split recursively; one below `min_tokens` joins a neighbour when both fit
    together. Where no pattern has `min_matches` and `min_score`, the document is split recursively.

    Source: the "LLM regex" splitter of Adaptive Chunking, arXiv 2603.25333.
    Deviations: the patterns are given and chosen by these scores, nobody writes one per document; sizes for the scores
    are characters at the document's mean token length.
    """

    min_tokens: int = 16
    min_matches: int = 3
    min_score: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)
        self._check_at_least("min_matches", self.min_matches, 1)
        if not 0.0 <= self.min_score <= 1.0:
            raise ConfigError(f"regex-library: min_score must lie in [0, 1], not {self.min_score}")

    def chunk(self, document: Document) -> list[Chunk]:
        return self.decide(document)[0]

    def decide(self, document: Document) -> tuple[list[Chunk], Mapping[str, Any] | None]:
        return self.decide_with(document, self.ruler(document)) if document.text.strip() else ([], None)

    def decide_with(self, document: Document, ruler: Ruler) -> tuple[list[Chunk], Mapping[str, Any]]:
        """`decide` with a ruler that has counted the tokens already."""
        cuts = CutLevels(document, STRUCTURE)
        fits = self.fits(document, ruler)
        best = fits[0] if fits and fits[0].score >= self.min_score else None
        ends = section_ends(ruler, cuts, best.starts if best else (), self.min_tokens)
        chunks = self.cut(document, tiles_of(ends), ruler.tokens)
        return chunks, self._record(best, [one for one in fits if one is not best][:_BEST])

    def fits(self, document: Document, ruler: Ruler) -> list[Fit]:
        """The patterns with enough matches and the pairs of the best of them, best first, ties in library order."""
        length = len(document.text)
        chars_per_token = length / max(1, ruler.tokens.count(0, length))
        small, large = self.min_tokens * chars_per_token, min(self.token_limit * chars_per_token, self.char_limit)
        found: dict[tuple[int, ...], str] = {}
        for name, starts in Lines(document).all_matches().items():
            if len(starts) >= self.min_matches:
                found.setdefault(tuple(starts), name)  # of patterns that match the same lines the first stands for all
        single = [fit((name,), starts, length, small=small, large=large) for starts, name in found.items()]
        single.sort(key=lambda one: -one.score)
        pairs = []
        for one, other in combinations(single[:_BEST], 2):
            starts = sorted({*one.starts, *other.starts})
            pair = fit((*one.names, *other.names), starts, length, small=small, large=large)
            if pair.score > max(one.score, other.score) + _PAIR_GAIN:
                pairs.append(pair)
        return sorted((*single, *pairs), key=lambda one: -one.score)

    def _record(self, best: Fit | None, others: Sequence[Fit]) -> dict[str, Any]:
        why = (
            f"the lines that match {' or '.join(best.names)} divide the text best"
            if best
            else f"no pattern matches {self.min_matches} lines with a score of {self.min_score}: split recursively"
        )
        record: dict[str, Any] = {"chunker": self.plugin, "reason": why}
        if best:
            record |= best.record() | {"regex": [LIBRARY[name].pattern for name in best.names if name in LIBRARY]}
        return record | {"runners_up": [one.record() for one in others]}
