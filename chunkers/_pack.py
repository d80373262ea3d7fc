"""The core of all chunkers: ranges of a text that fit a limit. A text is tokenised once, pieces never are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from chunkers._cuts import CutLevels
from rag.protocols import TokenCounter
from rag.text import TokenMap, fit_tokens, may_cut
from rag.types import Document

__all__ = ["Ruler", "join_small", "pack", "split"]


class Ruler:
    """Says what fits into one chunk of one document: header + text within `max_tokens`, text within `max_chars`.

    `header` gives the context line of a chunk that starts at an offset. `tokens` may be shared between rulers.
    """

    def __init__(
        self,
        document: Document,
        counter: TokenCounter,
        *,
        max_tokens: int,
        max_chars: int,
        header: Callable[[int], str] | None = None,
        tokens: TokenMap | None = None,
    ) -> None:
        self.text = document.text
        self.max_tokens = max_tokens
        self.max_chars = max_chars
        self.tokens = tokens or TokenMap(counter, document.text)
        self._counter = counter
        self._header = header
        self._header_tokens: dict[str, int] = {"": 0}

    def header(self, start: int) -> str:
        """The context line of a chunk that starts there."""
        return self._header(start) if self._header else ""

    def far(self, start: int) -> int:
        """No range from `start` that ends after this fits; for counters that are not additive it is a guess."""
        return min(self.tokens.reach(start, self.budget(start)), start + self.max_chars, len(self.text))

    def fits(self, start: int, end: int) -> bool:
        """True when [start, end) is within the limits, counted exactly."""
        if end > self.far(start):
            return False
        if self.tokens.count(start, end) > self.budget(start):
            return False
        return self._counter.additive or self._fits_assembled(start, end)

    def window(self, start: int, stop: int) -> int:
        """The end of the longest range from `start` that fits, at most `stop`; at least one user-visible character."""
        budget = self.budget(start)
        while True:
            end = fit_tokens(self.tokens, self.text, start, stop, budget, self.max_chars)
            if budget == 1 or self._counter.additive or self._fits_assembled(start, end):
                return end
            budget -= 1

    def budget(self, start: int) -> int:
        """Tokens that are left for the text of a chunk that starts at `start`."""
        header = self.header(start)
        if header not in self._header_tokens:
            self._header_tokens[header] = self._counter.count(header + "\n")
        return max(1, self.max_tokens - self._header_tokens[header])

    def _fits_assembled(self, start: int, end: int) -> bool:
        """Counts header and text as one, for counters whose parts do not add up."""
        header = self.header(start)
        return not header or self._counter.count(f"{header}\n{self.text[start:end]}") <= self.max_tokens


def split(ruler: Ruler, cuts: CutLevels, start: int, end: int, level: int = 0) -> list[int]:
    """Ends of ranges that tile [start, end): pieces between the coarsest cuts, merged greedily while they fit.

    A piece that does not fit is split at the next finer level, and its parts do not merge with its neighbours. Below
    the last level come white space and, for want of any, user-visible characters.
    """
    if level == len(cuts):
        return _split_words(ruler, start, end)
    points, low, high = cuts.between(level, start, end)
    if low == high:
        return [end] if ruler.fits(start, end) else split(ruler, cuts, start, end, level + 1)
    ends: list[int] = []
    while start < end:
        if ruler.fits(start, end):
            return [*ends, end]
        at = _last_fitting(ruler, points, low, high, start)
        if at is not None:
            start, low = points[at], at + 1
            ends.append(start)
            continue
        stop = points[low] if low < high else end
        ends.extend(split(ruler, cuts, start, stop, level + 1))
        start, low = stop, low + 1
    return ends


def _last_fitting(ruler: Ruler, points: Sequence[int], low: int, high: int, start: int) -> int | None:
    """Index in [low, high) of the last point that `start` reaches."""
    at = bisect_right(points, ruler.far(start), low, high) - 1
    while at >= low and not ruler.fits(start, points[at]):
        at -= 1
    return at if at >= low else None


def _split_words(ruler: Ruler, start: int, end: int) -> list[int]:
    """Windows that end after white space where there is some."""
    ends: list[int] = []
    while start < end:
        start = _word_end(ruler, start, ruler.window(start, end), end)
        ends.append(start)
    return ends


def _word_end(ruler: Ruler, start: int, end: int, stop: int) -> int:
    text = ruler.text
    if end == stop or text[end - 1].isspace():
        return end
    at = end - 1
    while at > start and not text[at - 1].isspace():
        at -= 1
    return at if at > start and may_cut(text, at) and ruler.fits(start, at) else end


def pack(
    ruler: Ruler, ends: list[int], resplit: Callable[[int, int], list[int]], overlap: int = 0
) -> list[tuple[int, int]]:
    """Ranges of whole atoms, each as long as fits; `ends` are the ends of atoms that tile the text from 0.

    The next range starts `overlap` atoms before the end of the last one, or later when that leaves no room for a new
    atom. An atom that does not fit is replaced by what `resplit` makes of it; `ends` is changed in place.
    """
    ranges: list[tuple[int, int]] = []
    first = fresh = 0  # the range starts with atom `first`; atom `fresh` is the first one that no range holds yet
    while fresh < len(ends):
        start = ends[first - 1] if first else 0
        last = _last_fitting(ruler, ends, fresh, len(ends), start)
        if last is None and first < fresh:
            first += 1
        elif last is None:
            ends[fresh : fresh + 1] = parts = resplit(start, ends[fresh])
            ranges.append((start, parts[0]))
            first, fresh = max(fresh + 1 - overlap, first + 1), fresh + 1
        else:
            ranges.append((start, ends[last]))
            first, fresh = max(last + 1 - overlap, first + 1), last + 1
    return ranges


def join_small(
    ruler: Ruler,
    start: int,
    ends: Sequence[int],
    min_tokens: int,
    may_join: Callable[[int, int], bool] = lambda first, second: True,
) -> list[int]:
    """The ends without those between two neighbours of which one is below `min_tokens` and that fit together.

    `may_join` is asked with the starts of the two.
    """
    joined: list[int] = []
    for end in ends:
        before = joined[-2] if len(joined) > 1 else start
        if (
            joined
            and _is_small(ruler, before, joined[-1], end, min_tokens)
            and ruler.fits(before, end)
            and may_join(before, joined[-1])
        ):
            joined[-1] = end
        else:
            joined.append(end)
    return joined


def _is_small(ruler: Ruler, start: int, middle: int, end: int, min_tokens: int) -> bool:
    return min(ruler.tokens.count(start, middle), ruler.tokens.count(middle, end)) < min_tokens
