"""Regular expressions that say at which lines a document begins something new, and how well one of them fits.

Patterns are matched against the first characters of one line at a time and every repeat is bounded, so a pattern costs
the same small amount for any line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import fmean, pstdev

from chunkers._cuts import CutLevels, outer_blocks
from chunkers._pack import Ruler, join_small, split
from rag.types import Document

__all__ = ["HEAD_CHARS", "LIBRARY", "Fit", "Lines", "fit", "section_ends"]

HEAD_CHARS = 120
"""So much of a line is looked at."""

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_ROMAN = "[IVXLC]{1,7}"
_CAPITAL = "A-ZÀ-ÖØ-ÞΑ-ΩА-Я"
_SMALL = "a-zß-öø-ÿα-ωа-я"
_PART_WORDS = (
    "chapter|part|book|appendix|annex|title|schedule|chapitre|partie|livre|annexe|titre|kapitel|teil|anhang|anlage"
    "|cap[ií]tulo|parte|anexo|t[ií]tulo"
)
_SECTION_WORDS = "section|abschnitt|secci[oó]n|se[cç][aã]o|sezione|clause|rule|exhibit|amendment|paragraph"

_SOURCES: Mapping[str, str] = {
    "markdown-1": r"#[ \t]\S",
    "markdown-2": r"#{1,2}[ \t]\S",
    "markdown-3": r"#{1,3}[ \t]\S",
    "markdown-any": r"#{1,6}[ \t]\S",
    "asciidoc": r"={1,6}[ \t]\S",
    "wiki": r"={2,6}[^=]{1,80}={2,6}[ \t]{0,4}$",
    "latex": r"\\(?:part|chapter|(?:sub){0,2}section|paragraph)\*?\{",
    "part-word": rf"(?i:{_PART_WORDS})[ \t]{{1,4}}(?:\d{{1,4}}|[A-Z]\b|(?-i:{_ROMAN})\b|[a-z]{{3,12}}\b)",
    "article": r"(?i:article|artikel|art[ií]culo|articolo|art\.)[ \t]{1,4}(?:\d{1,4}|[IVXLC]{1,7}\b|[LRD]\.?[ \t*]?\d)",
    "section-word": rf"(?i:{_SECTION_WORDS})[ \t]{{1,4}}(?:\d{{1,4}}|[A-Z]\b|{_ROMAN}\b)",
    "paragraph-sign": r"§{1,2}[ \t\u00a0]{0,4}\d{1,5}",
    "number-1": r"[ \t]{0,4}\d{1,3}[.)]?[ \t]{1,4}[^\W\d_a-z][^\n]{1,80}[^\n.;,:]$",
    "number-dot": r"[ \t]{0,4}\d{1,3}\.[ \t]{1,4}\S",
    "number-2": r"[ \t]{0,4}\d{1,3}\.\d{1,3}\.?[ \t]{1,4}\S",
    "number-3": r"[ \t]{0,4}\d{1,3}\.\d{1,3}\.\d{1,3}\.?[ \t]{1,4}\S",
    "number-any": r"[ \t]{0,4}\d{1,3}(?:\.\d{1,3}){0,4}\.?[ \t]{1,4}[^\W\d_a-z]",
    "number-paren": r"[ \t]{0,4}\(?\d{1,3}\)[ \t]{1,4}\S",
    "letter-paren": r"[ \t]{0,4}\(?[A-Za-z][.)][ \t]{1,4}\S",
    "roman": rf"[ \t]{{0,4}}\(?{_ROMAN}[.)][ \t]{{1,4}}\S",
    "capitals": rf"[ \t]{{0,8}}[{_CAPITAL}][ '’.&/-]?[{_CAPITAL}][^{_SMALL}\n]{{2,77}}$",
    "question": r"(?:\*\*)?(?:Q(?:uestion)?|F(?:rage)?)[ \t]{0,2}\d{0,4}[ \t]{0,2}[:.)]",
    "question-line": r"[^\W\d_a-z][^\n?]{8,110}\?$",
    "speaker-capitals": rf"[{_CAPITAL}]{{2,24}}(?:[ \t.][{_CAPITAL}]{{1,24}}){{0,3}}[.:](?:[ \t]|$)",
    "speaker": r"(?:\*\*)?[^\W\d_a-z][\w.'’-]{0,24}(?:[ \t][^\W\d_a-z][\w.'’-]{0,24}){0,3}(?:[ \t]\([^()\n]{1,24}\))?"
    r"(?:\*\*)?:(?:\*\*)?(?:[ \t]|$)",
    "date-iso": r"[\[(]?\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b",
    "date-number": r"[\[(]?\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b",
    "date-words": rf"(?:{_DAY}\.?[ \t]{_MONTH}|{_MONTH}[ \t]{_DAY},?)[ \t]?\d{{0,4}}\b",
    "time-stamp": r"[\[(]?\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,6})?[\])]?[ \t-]",
    "log-level": r"[\[(]?(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|FATAL|CRITICAL)\b",
    "mail": r"From:[ \t]\S",
    "bullet": r"[ \t]{0,4}[-*+•–][ \t]{1,4}\S",
    "rule": r"[ \t]{0,4}(?:-{3,110}|\*{3,110}|_{3,110}|={3,110}|~{3,110}|(?:\*[ \t]){2,20}\*)[ \t]{0,4}$",
    "bold": r"\*\*[^*\n]{2,100}\*\*:?[ \t]{0,4}$",
}

LIBRARY: Mapping[str, re.Pattern[str]] = {name: re.compile(source) for name, source in _SOURCES.items()}
"""Name -> boundary pattern, coarse ones before their finer kin: of equals the first wins.

The pattern `underline` (a title with a line of `===` or `---` under it, as in RST) is matched by `Lines` itself.
"""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:.])\1{2,110}$")


@dataclass(frozen=True)
class Lines:
    """The lines of a document as patterns see them: the first characters of each, without white space at the end.

    Lines inside of code and tables, and lines before which no chunk may begin, are passed over.
    """

    document: Document

    @cached_property
    def _all(self) -> list[tuple[int, str]]:
        """(offset, head) of every line that shows something."""
        text, found = self.document.text, []
        for match in _LINE.finditer(text):
            start, end = match.span()
            head = text[start : min(end, start + HEAD_CHARS)].rstrip()
            if head:
                found.append((start, head if end - start <= HEAD_CHARS else head + "…"))
        return found

    @cached_property
    def _open(self) -> frozenset[int]:
        """Where a chunk may begin."""
        opaque = sorted(block.span for block in outer_blocks(self.document) if block.kind in ("code", "table"))
        ends = [span.end for span in opaque]
        points = {0}
        for at in CutLevels(self.document, ("lines",)).points(0):
            place = bisect_right(ends, at)
            if place == len(opaque) or at <= opaque[place].start:
                points.add(at)
        return frozenset(points)

    @cached_property
    def heads(self) -> list[tuple[int, str]]:
        """(offset, head) of every line that a chunk may begin with."""
        return [line for line in self._all if line[0] in self._open]

    def matches(self, pattern: re.Pattern[str]) -> list[int]:
        """Offsets of the lines that the pattern matches from their start."""
        match = pattern.match
        return [start for start, head in self.heads if match(head)]

    def underlined(self) -> list[int]:
        """Offsets of titles that a line of one repeated sign underlines, at least as long as they are."""
        found = []
        before: tuple[int, str] | None = None
        for start, head in self._all:
            rule = _UNDERLINE.match(head) is not None
            if rule and before and len(before[1]) <= len(head) and not _UNDERLINE.match(before[1]):
                found.append(before[0])
            before = (start, head)
        return [start for start in found if start in self._open]

    def all_matches(self) -> dict[str, list[int]]:
        """Name -> offsets for every pattern of the library that matches anywhere."""
        found = {"underline": self.underlined()}
        found |= {name: self.matches(pattern) for name, pattern in LIBRARY.items()}
        return {name: starts for name, starts in found.items() if starts}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well one pattern, or two together, divides a document. `parts` are 0 to 1, `score` is their mean."""

    names: tuple[str, ...]
    starts: Sequence[int] = field(repr=False)
    parts: Mapping[str, float]

    @property
    def score(self) -> float:
        return fmean(self.parts.values())

    def record(self) -> dict[str, object]:
        """The fit as JSON."""
        return {
            "pattern": " + ".join(self.names),
            "matches": len(self.starts),
            "score": round(self.score, 4),
            **{name: round(value, 4) for name, value in self.parts.items()},
        }


def fit(names: tuple[str, ...], starts: Sequence[int], length: int, *, small: float, large: float) -> Fit:
    """The fit of cuts at `starts` in a text of `length` characters; sections should have `small` to `large` of them.

    `count`: matches over the number of sections of the size `large` that the text needs, at most 1. `regularity`:
    1 / (1 + standard deviation / mean) of the sizes. `size`: the share of characters in sections of a fitting size,
    a larger section counts by `large` over its size: it will be split.
    """
    edges = [0, *(start for start in starts if start), length]
    sizes = [after - before for before, after in pairwise(edges)]
    fitting = sum(min(size, large) for size in sizes if size >= small)
    needed = max(1.0, length / large - 1.0)
    return Fit(
        names=names,
        starts=starts,
        parts={
            "count": min(1.0, len(starts) / needed),
            "regularity": 1.0 / (1.0 + pstdev(sizes) / fmean(sizes)),
            "size": fitting / length,
        },
    )


def section_ends(ruler: Ruler, cuts: CutLevels, starts: Sequence[int], min_tokens: int) -> list[int]:
    """Ends of ranges that tile the text: sections from one start to the next, split where they do not fit."""
    ends: list[int] = []
    begin = 0
    for end in (*(start for start in starts if start), len(ruler.text)):
        ends.extend([end] if ruler.fits(begin, end) else split(ruler, cuts, begin, end))
        begin = end
    return join_small(ruler, 0, ends, min_tokens)
