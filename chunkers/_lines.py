"""Paragraphs and titles of texts without markup, from their lines; and the stops inside of quotes and brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from rag.text import sentence_spans
from rag.types import Document

__all__ = ["Lines", "inner_stops", "lines_of"]

_LINE = re.compile(r"[^\s][^\n\r]*")
_MARKS = re.compile(r"[\"“”„«»()\[\]{}「」『』（）]|(?<!\w)['‘’]|['‘’](?!\w)|\\n")
_OPENING = "\"“„«([{「『（'‘"
_LETTERS = re.compile(r"[^\W\d_]{3}")
_ENDS = (".", "!", "?", "…", ":", ";", '"', "'", "”", "’", ")", "]", "。", "！", "？", "」")
_LONG = 40
"""A line with more characters tells whether lines are paragraphs; shorter ones may be titles or list items."""
_SHARE = 0.6
"""Of the long lines that end as a sentence ends. Wrapped text has about a tenth of them, tables none."""
_TITLE_CHARS = 80


@dataclass(frozen=True)
class Lines:
    """Offsets of the first visible character of lines: all that are paragraphs, and those of them that are titles."""

    paragraphs: tuple[int, ...] = ()
    titles: tuple[int, ...] = ()


def lines_of(text: str) -> Lines:
    """The paragraphs and titles of a text whose lines are paragraphs; none of both for wrapped lines and tables.

    A title is a short line without a stop at its end that a longer line follows.
    """
    found = [(match.start(), match.group().rstrip()) for match in _LINE.finditer(text)]
    long = [line for _, line in found if len(line) > _LONG]
    if not long or sum(line.endswith(_ENDS) for line in long) < _SHARE * len(long):
        return Lines()
    titles = [at for (at, line), (_, after) in pairwise(found) if _is_title(line, after)]
    return Lines(tuple(at for at, _ in found), tuple(titles))


def inner_stops(text: str, start: int, end: int) -> list[int]:
    """Where sentences begin inside of [start, end), which the splitter takes for one: quoted or bracketed text.

    The splitter is asked again about the text without its quotes and brackets. A line end that is written as backslash
    and n counts as white space: logs have them.
    """
    bare = _MARKS.sub(lambda found: " " * len(found[0]), text[start:end])
    stops = [start + span.start for span in sentence_spans(Document(text=bare, source=""))[1:]]
    return list(dict.fromkeys(at for stop in stops if (at := _before_opening(text, start, stop)) > start))


def _before_opening(text: str, start: int, at: int) -> int:
    """Before the quotes and brackets that open at `at`."""
    while at > start and text[at - 1] in _OPENING:
        at -= 1
    return at


def _is_title(line: str, after: str) -> bool:
    ended = line.endswith((*_ENDS, ",", "|", "}"))
    return len(line) <= _TITLE_CHARS and not ended and len(after) > len(line) and _LETTERS.search(line) is not None
