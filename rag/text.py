"""Text as everybody here sees it: sentences, token maps, the assembled context, the lexical form.

Offsets are code points. Nothing here changes a text; everything returns ranges of it.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from rag.protocols import SliceCounter, TokenCounter
from rag.types import Document, Span

__all__ = [
    "TokenMap",
    "assemble",
    "fit_tokens",
    "lexical_words",
    "safe_cut",
    "sentence_spans",
    "split_spans",
    "trimmed",
]

SEPARATOR = "\n\n"
"""Stands between two pieces of an assembled context."""

_SEAM = frozenset(" \t\n\r")
_WORD = re.compile(r"\w+")
_CJK = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿ｦ-ﾟ]")
_JOINERS = frozenset("\u200d\ufe0e\ufe0f")


def assemble(texts: Iterable[str]) -> str:
    """The context as one text. Budgets are counted on this, since token counts are not additive over a seam."""
    return SEPARATOR.join(texts)


class TokenMap(SliceCounter):
    """Counts tokens of any slice of one text after tokenising that text once.

    Exact: a seam with white space on one side is additive for counters that say so; the one broken word at any
    other seam is counted anew; a counter that is not additive counts the slice.

    Reads per query: two binary searches, plus at most the two words at the edges.
    """

    def __init__(self, counter: TokenCounter, text: str) -> None:
        self._counter = counter
        self._text = text
        self._starts = [start for start, _ in counter.offsets(text)] if counter.additive else []

    def count(self, start: int, end: int) -> int:
        """Exactly `counter.count(text[start:end])`."""
        if start >= end:
            return 0
        if not self._counter.additive:
            return self._counter.count(self._text[start:end])
        left, right = self._seam_after(start, end), self._seam_before(start, end)
        if left >= right:
            return self._counter.count(self._text[start:end])
        inner = bisect_left(self._starts, right) - bisect_left(self._starts, left)
        return self._edge(start, left) + inner + self._edge(right, end)

    def count_slice(self, text: str, start: int, end: int) -> int:
        return self.count(start, end) if text is self._text else self._counter.count(text[start:end])

    def reach(self, start: int, tokens: int) -> int:
        """A first guess for the largest end with at most `tokens` tokens after `start`; `fit_tokens` makes it exact."""
        if not self._counter.additive:
            return min(len(self._text), start + 4 * tokens)
        at = bisect_left(self._starts, start) + tokens
        return self._starts[at] if at < len(self._starts) else len(self._text)

    def _edge(self, start: int, end: int) -> int:
        return self._counter.count(self._text[start:end]) if start < end else 0

    def _is_seam(self, at: int) -> bool:
        text = self._text
        return at == 0 or at == len(text) or text[at - 1] in _SEAM or text[at] in _SEAM

    def _seam_after(self, start: int, end: int) -> int:
        while start < end and not self._is_seam(start):
            start += 1
        return start

    def _seam_before(self, start: int, end: int) -> int:
        while end > start and not self._is_seam(end):
            end -= 1
        return end


def fit_tokens(tokens: TokenMap, text: str, start: int, stop: int, max_tokens: int, max_chars: int) -> int:
    """The largest safe end in (start, stop] with at most `max_tokens` and `max_chars`; at least one cluster."""
    high = min(stop, start + max_chars)
    if tokens.count(start, high) <= max_tokens:
        return safe_cut(text, start, high)
    low, guess = start, min(high, tokens.reach(start, max_tokens))
    while low + 1 < high:
        if tokens.count(start, guess) <= max_tokens:
            low = guess
        else:
            high = guess
        guess = (low + high) // 2
    end = safe_cut(text, start, max(low, start + 1))
    while tokens.count(start, end) > max_tokens:  # moving to a safe place may have split a word anew
        earlier = safe_cut(text, start, end - 1)
        if not start < earlier < end:
            return end  # one unsplittable cluster
        end = earlier
    return end


def safe_cut(text: str, start: int, end: int) -> int:
    """The nearest place at or before `end` that parts no user-visible character; at least one is kept.

    Kept whole: combining marks, variation selectors, zero-width-joiner sequences, CR LF, flags, skin tones.
    """
    at = end
    while at > start and not _may_cut(text, at):
        at -= 1
    if at > start:
        return at
    at = end
    while at < len(text) and not _may_cut(text, at):
        at += 1
    return at


def _may_cut(text: str, at: int) -> bool:
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if before < "\u0300" and after < "\u0300":
        return not (before == "\r" and after == "\n")
    if after in _JOINERS or before == "\u200d" or unicodedata.category(after).startswith("M"):
        return False
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return False
    return not (_is_flag_letter(before) and _is_flag_letter(after))


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def split_spans(length: int, cuts: Iterable[int]) -> list[Span]:
    """The spans between sorted distinct cut points; together they tile [0, length)."""
    edges = sorted({0, length, *(cut for cut in cuts if 0 < cut < length)})
    return [Span(a, b) for a, b in pairwise(edges)]


def sentence_spans(document: Document) -> list[Span]:
    """Sentences that tile the text; white space belongs to the sentence before it, no sentence crosses a block.

    Source: sentencex (MIT) for the rules; its cut points are taken and the gaps filled, since its sentences do not
    always join back to the text. Blank stretches never stand alone, except a text that is all blank.
    """
    text = document.text
    cuts = [block.span.start for block in document.blocks] + [block.span.end for block in document.blocks]
    cuts.extend(_sentence_cuts(text))
    return list(_glue_blank(text, split_spans(len(text), cuts)))


def _sentence_cuts(text: str) -> Iterator[int]:
    from sentencex import get_sentence_boundaries

    language = "ja" if 5 * len(_CJK.findall(text[:20000])) > len(text[:20000]) else "en"
    for boundary in get_sentence_boundaries(language, text):
        yield boundary["start_index"]
        yield boundary["end_index"]


def _glue_blank(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    """Blank spans join the span before them; leading blanks join the first one that says something."""
    held: Span | None = None
    for span in spans:
        if held is None:
            held = span
        elif text[span.start : span.end].isspace() or text[held.start : held.end].isspace():
            held = Span(held.start, span.end)
        else:
            yield held
            held = span
    if held is not None:
        yield held


def trimmed(text: str, span: Span) -> Span:
    """The span without white space at its ends; an all-blank span becomes empty at its start."""
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, span.start + len(piece.rstrip())) if piece.strip() else Span(span.start, span.start)


def lexical_words(text: str) -> list[str]:
    """Words for the full-text index and its queries: NFKC, case folded, every CJK character a word of its own."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_CJK.sub(lambda match: f" {match.group()} ", folded))
