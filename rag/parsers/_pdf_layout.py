"""Lines of a PDF with their place on the page -> paragraphs and headings.

A PDF knows glyphs and places only. Three facts about neighbouring lines carry the structure here: the distance
between them, the size of their letters, and a jump upwards (a new column).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

__all__ = ["Line", "heading_levels", "join_hyphens", "paragraphs"]

_GAP = 1.35  # a distance over this many typical ones starts a paragraph
_SIZE_STEP = 1.12  # letters this much larger or smaller than before start one too
_HEADING = 1.15  # and this much larger than the body's make a heading
_HEADING_CHARS = 200
_HYPHEN = re.compile("(\\w+)\ufffe(\\w+)")


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `height` of its letters and `bottom` in points, the page's origin below left, 0.0 when unknown."""

    text: str
    height: float
    bottom: float


def paragraphs(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """The lines of one page, in their order, cut where a paragraph begins."""
    steps = [above.bottom - below.bottom for above, below in pairwise(lines)]
    usual = median([step for step in steps if step > 0.5] or [0.0])
    group: list[Line] = []
    for line in lines:
        if group and _begins(group[-1], line, usual):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _begins(above: Line, line: Line, usual: float) -> bool:
    if not (above.height and line.height):
        return False
    step = above.bottom - line.bottom
    larger, smaller = max(above.height, line.height), min(above.height, line.height)
    if abs(step) > 0.5 and larger > _SIZE_STEP * smaller:
        return True
    return step < -line.height or step > max(_GAP * usual, 1.2 * line.height)


def heading_levels(pages: Sequence[Sequence[Line]]) -> Mapping[float, int]:
    """Rounded letter height -> heading level, for every height clearly above that of most characters."""
    weights: Counter[float] = Counter()
    for page in pages:
        for line in page:
            weights[round(line.height)] += len(line.text)
    if not weights:
        return {}
    body = max(weights, key=lambda height: (weights[height], -height))
    large = sorted((height for height in weights if height > _HEADING * body and body > 0), reverse=True)
    return {height: min(level, 6) for level, height in enumerate(large, 1)}


def heading_level(group: Sequence[Line], levels: Mapping[float, int]) -> int:
    """The level of a paragraph that is a heading, else 0."""
    text = " ".join(line.text for line in group)
    wordy = len(text) <= _HEADING_CHARS and len(group) <= 3 and any(char.isalpha() for char in text)
    return levels.get(round(group[0].height), 0) if wordy else 0


def join_hyphens(text: str, words: frozenset[str]) -> str:
    """Mend words that were broken at a line end, which pdfium marks with U+FFFE.

    `words` are the case-folded words of the whole document: a word that stands elsewhere in one piece loses its
    hyphen ("transac-tion"), all others keep it ("non-exclusive").
    """

    def mend(match: re.Match[str]) -> str:
        left, right = match.groups()
        return left + right if (left + right).casefold() in words else f"{left}-{right}"

    return _HYPHEN.sub(mend, text).replace("\ufffe", "-")
