"""Text as everybody here sees it: sentences, token maps, the assembled context, the lexical form.

Offsets are code points. Nothing here changes a text; everything returns ranges of it.
"""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Protocol

from rag.protocols import SliceCounter, TokenCounter
from rag.types import Document, Span

__all__ = [
    "WHITE",
    "SentenceStarts",
    "TokenFinder",
    "TokenMap",
    "TokenStarts",
    "Tokens",
    "assemble",
    "fit_tokens",
    "invisible_counts",
    "is_seam",
    "lexical_words",
    "may_cut",
    "printable",
    "safe_cut",
    "sentence_spans",
    "split_spans",
    "stretches",
    "trimmed",
]

SEPARATOR = "\n\n"
"""Stands between two pieces of an assembled context."""

WHITE = " \n\t\r"
_SEAM = re.compile(r"[ \n\t\r]")
_STRETCH = 16_384
"""Characters that are tokenised at a time: larger is slower, since a tokenizer keeps tables beside its text."""
_PARAGRAPH = re.compile(r"\n\n(?<!\s\n\n)(?!\s)")
"""Where sentencex certainly starts anew, so that what it finds on either side depends on that side alone."""
_PANIC = re.compile(r"\.(?<=[A-Z][^\S\x00-\x7f]\.)")
"""sentencex 1.0.30 panics at the point in "Plan B\u00a0."; with a plain space before it it does not."""
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


class Tokens(Protocol):
    """Where the tokens of one text start."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def before(self, at: int) -> int:
        """How many start before `at`."""

    @abstractmethod
    def start(self, number: int) -> int:
        """The first character of a token, 0 <= number < len."""


class TokenStarts(Tokens):
    """Found by tokenising the text, stretch by stretch where the counter is additive."""

    def __init__(self, counter: TokenCounter, text: str) -> None:
        self._starts: list[int] = []
        for begin, end in stretches(text) if counter.additive else ((0, len(text)),):
            self._starts.extend([begin + start for start, _ in counter.offsets(text[begin:end])])

    def __len__(self) -> int:
        return len(self._starts)

    def before(self, at: int) -> int:
        return bisect_left(self._starts, at)

    def start(self, number: int) -> int:
        return self._starts[number]


class TokenFinder(TokenCounter):
    """A counter with a faster way to the tokens of a text."""

    @abstractmethod
    def tokens(self, text: str) -> Tokens:
        """What `TokenStarts` finds."""


def stretches(text: str) -> Iterator[tuple[int, int]]:
    """Ranges that tile the text and part no word, cheaper to tokenise than one huge text."""
    begin = 0
    while begin < len(text):
        seam = _SEAM.search(text, begin + _STRETCH)
        end = seam.start() if seam else len(text)
        yield begin, end
        begin = end


def is_seam(text: str, at: int) -> bool:
    """True when no word goes on over `at`."""
    return at == 0 or at == len(text) or text[at - 1] in WHITE or text[at] in WHITE


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
    def _tokens(self) -> Tokens:
        counter = self._counter
        return counter.tokens(self._text) if isinstance(counter, TokenFinder) else TokenStarts(counter, self._text)

    def count(self, start: int, end: int) -> int:
        """Exactly `counter.count(text[start:end])`."""
        if start >= end:
            return 0
        if not self._counter.additive:
            return self._anew(start, end)
        left, right = self._seam_after(start, end), self._seam_before(start, end)
        if left >= right:
            return self._anew(start, end)
        inner = self._tokens.before(right) - self._tokens.before(left)
        return self._anew(start, left) + inner + self._anew(right, end)

    def count_slice(self, text: str, start: int, end: int) -> int:
        return self.count(start, end) if text is self._text else self._counter.count(text[start:end])

    def reach(self, start: int, tokens: int) -> int:
        """A first guess for the largest end with at most `tokens` tokens after `start`; `fit_tokens` makes it exact.

        It is exact for an additive counter when both ends are seams.
        """
        at = self._tokens.before(start) + tokens
        return self._tokens.start(at) if at < len(self._tokens) else len(self._text)

    def reach_back(self, end: int, tokens: int) -> int:
        """A first guess for the smallest start with at most `tokens` tokens before `end`."""
        at = self._tokens.before(end) - tokens
        return min(end, self._tokens.start(at)) if 0 <= at < len(self._tokens) else (0 if at < 0 else end)

    def _anew(self, start: int, end: int) -> int:
        if start >= end:
            return 0
        known = self._counted.get((start, end))
        if known is None:
            known = self._counted[start, end] = self._counter.count(self._text[start:end])
        return known

    def _seam_after(self, start: int, end: int) -> int:
        """First seam at or after `start`, else `end`."""
        if is_seam(self._text, start):
            return start
        found = _SEAM.search(self._text, start, end)
        return found.start() if found else end

    def _seam_before(self, start: int, end: int) -> int:
        """Last seam at or before `end`, else `start`."""
        if is_seam(self._text, end):
            return end
        after = start
        for white in WHITE:
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
    starts = _sentence_starts(text, _language(text), _block_edges(document))
    return [Span(a, b) for a, b in pairwise((*starts, len(text)))]


class SentenceStarts:
    """The starts of `sentence_spans`, for who needs those of some paragraphs only: others are not looked at."""

    def __init__(self, document: Document) -> None:
        self._text = document.text
        self._language = _language(document.text)
        self._edges = sorted(_block_edges(document))
        self._borders = [0, *(match.end() for match in _PARAGRAPH.finditer(document.text)), len(document.text)]
        self._found: dict[int, list[int]] = {}

    def between(self, start: int, end: int) -> list[int]:
        """Those inside of (start, end)."""
        first = bisect_right(self._borders, start) - 1
        last = min(bisect_left(self._borders, end), len(self._borders) - 1)
        return [at for paragraph in range(first, last) for at in self._of(paragraph) if start < at < end]

    def _of(self, paragraph: int) -> list[int]:
        if paragraph not in self._found:
            begin, end = self._borders[paragraph : paragraph + 2]
            inside = self._edges[bisect_right(self._edges, begin) : bisect_left(self._edges, end)]
            starts = _sentence_starts(self._text[begin:end], self._language, [edge - begin for edge in inside])
            self._found[paragraph] = [begin + at for at in starts]
        return self._found[paragraph]


def _block_edges(document: Document) -> list[int]:
    return [edge for block in document.blocks for edge in (block.span.start, block.span.end)]


def _language(text: str) -> str:
    return "ja" if 5 * len(_CJK.findall(text[:20000])) > len(text[:20000]) else "en"


def _without_panic(text: str) -> str:
    """The text, of the same length, as sentencex can read it."""
    for match in [] if text.isascii() else list(_PANIC.finditer(text)):
        text = f"{text[: match.start() - 1]} {text[match.start() :]}"
    return text


def _sentence_starts(text: str, language: str, edges: Iterable[int]) -> list[int]:
    """Blank stretches join the sentence before them; leading ones join the first that says something."""
    from sentencex import get_sentence_boundaries

    cuts = {0, *edges}
    for boundary in get_sentence_boundaries(language, _without_panic(text)):
        cuts.add(boundary["start_index"])
        cuts.add(boundary["end_index"])
    cuts.discard(len(text))
    starts: list[int] = []
    says_something = False
    for begin, end in pairwise((*sorted(cuts), len(text))):
        blank = text[begin:end].isspace()
        if not starts or (says_something and not blank):
            starts.append(begin)
        says_something = says_something or not blank
    return starts


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
