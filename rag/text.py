"""Text as everybody here sees it: sentences, token maps, the assembled context, the lexical form.

Offsets are code points. Nothing here changes a text; everything returns ranges of it.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

from rag.protocols import SliceCounter, TokenCounter
from rag.types import Document, Span

__all__ = [
    "TokenMap",
    "assemble",
    "fit_tokens",
    "invisible_counts",
    "lexical_words",
    "may_cut",
    "printable",
    "safe_cut",
    "sentence_spans",
    "split_spans",
    "trimmed",
]

SEPARATOR = "\n\n"
"""Stands between two pieces of an assembled context."""

_WHITE = " \n\t\r"
_SEAM = re.compile(r"[ \n\t\r]")
_STRETCH = 16_384
"""Characters that are tokenised at a time: larger is slower, since a tokenizer keeps tables beside its text."""
_CJK = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿ｦ-ﾟ]")
_JOINERS = frozenset("\u200c\u200d\u0e33\u0eb3\ufe0e\ufe0f")
_EXTENDING = (("\u1160", "\u11ff"), ("\U0001f3fb", "\U0001f3ff"), ("\U000e0020", "\U000e007f"))
"""Hangul vowels and finals, skin tones, tags: they belong to the character before them."""

_INVISIBLE = {
    "zero_width": re.compile("[\u180e\u200b-\u200d\u2060-\u2064\ufeff]"),
    "bidi_controls": re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"),
    "tag_characters": re.compile("[\U000e0000-\U000e007f]"),
}
"""Characters that show nothing themselves: known carriers of hidden instructions, and of names that read as others."""


def assemble(texts: Iterable[str]) -> str:
    """The context as one text. Budgets are counted on this, since token counts are not additive over a seam."""
    return SEPARATOR.join(texts)


class TokenMap(SliceCounter):
    """Counts tokens of any slice of one text after tokenising that text once, on first use.

    Exact: a seam with white space on one side is additive for counters that say so; the one broken word at any
    other seam is counted anew; a counter that is not additive counts the slice. Slices that were counted anew are
    remembered, so that asking twice costs nothing.

    Reads per query: two binary searches, plus at most the two words at the edges.
    """

    def __init__(self, counter: TokenCounter, text: str) -> None:
        self._counter = counter
        self._text = text
        self._counted: dict[tuple[int, int], int] = {}

    @cached_property
    def _starts(self) -> list[int]:
        """First character of every token. Stretches that end at a seam are cheaper than one huge text."""
        starts: list[int] = []
        for begin, end in self._stretches():
            starts.extend([begin + start for start, _ in self._counter.offsets(self._text[begin:end])])
        return starts

    def _stretches(self) -> Iterator[tuple[int, int]]:
        text, begin = self._text, 0
        while begin < len(text):
            seam = _SEAM.search(text, begin + _STRETCH) if self._counter.additive else None
            end = seam.start() if seam else len(text)
            yield begin, end
            begin = end

    def count(self, start: int, end: int) -> int:
        """Exactly `counter.count(text[start:end])`."""
        if start >= end:
            return 0
        if not self._counter.additive:
            return self._anew(start, end)
        left, right = self._seam_after(start, end), self._seam_before(start, end)
        if left >= right:
            return self._anew(start, end)
        inner = bisect_left(self._starts, right) - bisect_left(self._starts, left)
        return self._anew(start, left) + inner + self._anew(right, end)

    def count_slice(self, text: str, start: int, end: int) -> int:
        return self.count(start, end) if text is self._text else self._counter.count(text[start:end])

    def reach(self, start: int, tokens: int) -> int:
        """A first guess for the largest end with at most `tokens` tokens after `start`; `fit_tokens` makes it exact.

        It is exact for an additive counter when both ends are seams.
        """
        at = bisect_left(self._starts, start) + tokens
        return self._starts[at] if at < len(self._starts) else len(self._text)

    def reach_back(self, end: int, tokens: int) -> int:
        """A first guess for the smallest start with at most `tokens` tokens before `end`."""
        at = bisect_left(self._starts, end) - tokens
        return min(end, self._starts[at]) if 0 <= at < len(self._starts) else (0 if at < 0 else end)

    def _anew(self, start: int, end: int) -> int:
        if start >= end:
            return 0
        known = self._counted.get((start, end))
        if known is None:
            known = self._counted[start, end] = self._counter.count(self._text[start:end])
        return known

    def _is_seam(self, at: int) -> bool:
        text = self._text
        return at == 0 or at == len(text) or text[at - 1] in _WHITE or text[at] in _WHITE

    def _seam_after(self, start: int, end: int) -> int:
        """First seam at or after `start`, else `end`."""
        if self._is_seam(start):
            return start
        found = _SEAM.search(self._text, start, end)
        return found.start() if found else end

    def _seam_before(self, start: int, end: int) -> int:
        """Last seam at or before `end`, else `start`."""
        if self._is_seam(end):
            return end
        after = start
        for white in _WHITE:
            after = max(after, self._text.rfind(white, after, end) + 1)
        return after


def fit_tokens(tokens: TokenMap, text: str, start: int, stop: int, max_tokens: int, max_chars: int) -> int:
    """The largest safe end in (start, stop] with at most `max_tokens` and `max_chars`; at least one cluster.

    When a seam changes the count of the token beside it, an end that falls short of the largest by that token is
    possible; more than the maximum never is, except for one cluster that cannot be split.
    """
    end = safe_cut(text, start, max(start + 1, _largest_end(tokens, start, min(stop, start + max_chars), max_tokens)))
    while tokens.count(start, end) > max_tokens:  # moving to a safe place may have split a word anew
        earlier = safe_cut(text, start, end - 1)
        if not start < earlier < end:
            return end  # one unsplittable cluster
        end = earlier
    return end


def _largest_end(tokens: TokenMap, start: int, stop: int, max_tokens: int) -> int:
    """Token by token from a good guess, then by halves: usually one or two counts."""
    low, high = start, stop + 1  # low fits, high does not
    goal = max_tokens
    while high - low > 1:
        guess = min(stop, tokens.reach(start, goal))
        at_token = low < guess < high
        if not at_token:
            guess = (low + high) // 2
        count = tokens.count(start, guess)
        if count <= max_tokens:
            low = guess
        else:
            high = guess
        if at_token and count == max_tokens:
            break
        goal = max(1, goal + max_tokens - count)
    return low


def safe_cut(text: str, start: int, end: int) -> int:
    """The nearest place at or before `end` that parts no user-visible character; at least one is kept.

    Kept whole: combining marks, variation selectors, zero-width-joiner sequences, CR LF, flags, skin tones, Hangul.
    """
    at = end
    while at > start and not may_cut(text, at):
        at -= 1
    if at > start:
        return at
    at = end
    while at < len(text) and not may_cut(text, at):
        at += 1
    return at


def may_cut(text: str, at: int) -> bool:
    """False when a cut before `text[at]` would part a user-visible character."""
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if after < "\u0300":
        return before != "\u200d" and not (before == "\r" and after == "\n")
    if after in _JOINERS or before == "\u200d" or unicodedata.category(after).startswith("M"):
        return False
    if any(low <= after <= high for low, high in _EXTENDING):
        return False
    return not (_is_flag_letter(after) and _flag_letters_before(text, at) % 2)


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _flag_letters_before(text: str, at: int) -> int:
    """Length of the run of flag letters that ends at `at`; two letters make one flag."""
    begin = at
    while begin > 0 and _is_flag_letter(text[begin - 1]):
        begin -= 1
    return at - begin


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
    folded = text.lower() if text.isascii() else _folded(_folded(text))
    return _word_pattern().findall(_CJK.sub(lambda match: f" {match.group()} ", folded))


def _folded(text: str) -> str:
    """Folding case can undo the normal form and the other way round; done twice, both hold."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    """Letters, digits, underscore and combining marks, which `\\w` leaves out: Hindi vowels are marks, for one."""
    marks = "".join(chr(code) for code in range(0x300, 0x1E900) if unicodedata.category(chr(code)).startswith("M"))
    return re.compile(rf"\w+(?:[{marks}]+\w*)*")


def invisible_counts(text: str) -> dict[str, int]:
    """How many characters of each kind above `text` holds, only kinds that it does hold."""
    if text.isascii():
        return {}
    counts = {name: sum(1 for _ in pattern.finditer(text)) for name, pattern in _INVISIBLE.items()}
    return {name: count for name, count in counts.items() if count}


def printable(text: str, *, lines: bool = False) -> str:
    """`text` for a terminal, each character that could steer it, or reorder or hide others, as an escape (`\\x1b`).

    For names and messages. `lines` is for whole documents: line ends and tabs stay, so does what joins letters.
    """
    if text.isprintable():
        return text
    return "".join(char if _harmless(char, lines) else char.encode("unicode_escape").decode() for char in text)


def _harmless(char: str, lines: bool) -> bool:
    if lines and (char in "\n\t" or _INVISIBLE["zero_width"].match(char)):
        return True
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
