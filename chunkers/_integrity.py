"""Which chunks lean on what stands before them, and the sentence there that would complete them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from chunkers._grounded import Source
from chunkers.metrics._references import mention_pairs
from rag.protocols import TextModel
from rag.types import Document, Span

__all__ = ["Flag", "ModelReviewer", "completion_of", "reviewed"]

_OPENS_BACK = re.compile(
    r"(?:however|therefore|thus|hence|consequently|accordingly|moreover|furthermore|nevertheless|nonetheless|instead|"
    r"otherwise|likewise|similarly|conversely|meanwhile|afterwards|in addition|in contrast|as a result|for this reason|"
    r"on the other hand|the (?:former|latter|same)|this|these|those|such|it|they|he|she|his|her|their|its)\b",
    re.IGNORECASE,
)
_EMPTY_SUBJECT = re.compile(r"it (?:is|was|will be|seems|appears|takes|rains) .{0,60}?\b(?:that|to)\b", re.IGNORECASE)
"""`It is known that ..` refers to nothing."""
_MARKS = " \t\r\n\"'(*_>-\u201c\u2018"
_VISIBLE = re.compile(r"\S")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_REFERRING = re.compile(r"(?:\b(?P<pointer>this|that|these|those|such)[ \t]+)?(?P<word>\w+)$", re.IGNORECASE)
_VERB = re.compile(r"(?:[^e]ed|[^siu]s)$")
"""`this requires`, `that showed`: a noun after `this` or `that` is singular, so this is a verb."""
_OPENING_WORDS = 8
"""What stands later in a sentence refers to that sentence more often than to another."""
_PROMPT_CHARS = 600
_JUDGE = """\
Passage: {opening}
Question: Can the passage be understood without the text before it? Answer yes or no.
Answer:"""
_WRITE = """\
Text:
{before}

Next sentence: {opening}

Write one short sentence that says who or what the next sentence is about. Use only words of the text.
Sentence:"""


@dataclass(frozen=True)
class Flag:
    """Chunk number `chunk` opens with `word`, which refers back; [start, end) is the sentence that it refers to.

    `mention` is where in that sentence the thing is named. `by`: "pair" (a pronoun and its mention), "opener" (a word
    that refers back, the sentence before stands for what it refers to) or "model".
    """

    chunk: int
    word: str
    mention: int
    start: int
    end: int
    by: str


class _Openings:
    """The first sentences of chunks, and the sentences before them, without headings, code and tables."""

    def __init__(self, document: Document, ends: Sequence[int]) -> None:
        self.document, self.ends = document, ends
        skipped = [block.span for block in document.blocks if block.kind in ("heading", "code", "table", "row")]
        self._skipped = sorted(skipped, key=lambda span: (span.start, -span.end))
        self._starts = [span.start for span in self._skipped]

    def sentence(self, at: int) -> Span:
        """The sentence that holds the offset."""
        place = bisect_right(self.ends, at)
        return Span(self.ends[place - 1] if place else 0, self.ends[place])

    def is_prose(self, at: int) -> bool:
        place = bisect_right(self._starts, at) - 1
        return not any(at < span.end for span in self._skipped[max(0, place - 1) : place + 1])

    def first(self, span: Span) -> Span | None:
        """The first sentence of prose in a chunk, from the chunk's start on; None for a chunk without any."""
        at = span.start
        for _ in range(3):  # below a heading, and a heading above that one
            if at >= span.end:
                return None
            sentence = self.sentence(at)
            visible = _VISIBLE.search(self.document.text, at, sentence.end)
            if visible and self.is_prose(visible.start()):
                return Span(at, min(sentence.end, span.end))
            at = sentence.end
        return None

    def before(self, at: int) -> Span | None:
        """The nearest sentence of prose that ends at or before the offset, at most three back."""
        place = bisect_right(self.ends, at) - 1
        for back in range(place, max(-1, place - 3), -1):
            start = self.ends[back - 1] if back else 0
            sentence = self.document.text[start : self.ends[back]]
            if self.is_prose(start) and not sentence.startswith("<") and len(_LETTERS.findall(sentence)) > 2:
                return Span(start, self.ends[back])
        return None


def reviewed(
    document: Document, spans: Sequence[Span], ends: Sequence[int], reviewer: ModelReviewer | None = None
) -> list[Flag]:
    """The chunks at `spans` (they tile the text) whose opening refers back, in order; `ends` are those of sentences.

    By rules: a pronoun of the opening sentence whose mention (`mention_pairs`) stands before the chunk, else an
    opening word that refers back. English only. With a `reviewer` it decides, and the rules only find the sentence.
    """
    openings = _Openings(document, ends)
    pairs = mention_pairs(document, ends)
    pronouns = sorted((end, start) for start, end in pairs)
    places = [end for end, _ in pronouns]
    flags = []
    for number, span in enumerate(spans):
        opening = openings.first(span) if number else None
        if opening is None:
            continue
        inside = pronouns[bisect_right(places, opening.start) : bisect_right(places, opening.end)]
        flag = next(filter(None, (_by_pair(openings, number, span, opening, *pair) for pair in inside)), None)
        flag = flag or _by_opener(openings, number, span, opening)
        if reviewer is not None:
            leans = reviewer.leans(document.text[opening.start : opening.end])
            flag = (flag or _of_model(openings, number, span)) if leans else None
        if flag:
            flags.append(flag)
    return flags


def _by_pair(openings: _Openings, number: int, span: Span, opening: Span, end: int, mention: int) -> Flag | None:
    """For a pronoun of the opening that ends at `end`, whose mention stands before the chunk."""
    text = openings.document.text
    found = _REFERRING.search(text, max(opening.start, end - 60), end)
    if mention >= span.start or not found:
        return None
    words_before = len(text[opening.start : found.start()].split())
    pointer = (found["pointer"] or "").lower()
    if words_before >= _OPENING_WORDS or (pointer == "that" and words_before):
        return None  # `that` inside of a sentence mostly opens a clause
    if pointer in ("this", "that") and _VERB.search(found["word"]):
        return None
    sentence = openings.sentence(mention)
    return Flag(number, " ".join(found[0].split()), mention, sentence.start, sentence.end, "pair")


def _by_opener(openings: _Openings, number: int, span: Span, opening: Span) -> Flag | None:
    head = openings.document.text[opening.start : min(opening.end, opening.start + 120)].lstrip(_MARKS)
    found = _OPENS_BACK.match(head)
    if not found or _EMPTY_SUBJECT.match(head):
        return None
    before = openings.before(span.start)
    return Flag(number, found[0], before.start, before.start, before.end, "opener") if before else None


def _of_model(openings: _Openings, number: int, span: Span) -> Flag | None:
    before = openings.before(span.start)
    return Flag(number, "", before.start, before.start, before.end, "model") if before else None


@dataclass
class ModelReviewer:
    """Asks a language model whether an opening stands alone: it leans when "no" beats "yes" by more than for no text.

    The margin of an empty passage is taken off (calibration, arXiv 2102.09690): a small model prefers one of the words
    whatever it reads. `calls` counts.
    """

    model: TextModel
    calls: int = 0
    _base: float | None = None

    def leans(self, opening: str) -> bool:
        if self._base is None:
            self._base = self._margin("N/A")
        return self._margin(" ".join(opening.split())[:_PROMPT_CHARS]) > self._base

    def _margin(self, opening: str) -> float:
        """ln P(no) - ln P(yes); 0 where the model does not tell."""
        prompt = _JUDGE.format(opening=opening)
        self.calls += 2
        values = [self.model.losses(word, after=prompt) for word in (" no", " yes")]
        if any(value is None for value in values):
            return 0.0
        no, yes = (math.fsum(nats for *_, nats in value or ()) for value in values)
        return yes - no


def completion_of(document: Document, flag: Flag, span: Span, model: TextModel | None) -> tuple[str, str, str]:
    """(the completion of a flagged chunk at `span`, who made it, why the model's own was refused).

    Extractive: the sentence that the opening refers to. A sentence of the model replaces it when each of its content
    words and numbers stands in the text before the chunk.
    """
    text = document.text
    extract = " ".join(text[flag.start : min(flag.end, span.start)].split())
    if model is None:
        return extract, "extract", ""
    start = max(0, min(flag.start, span.start - _PROMPT_CHARS))
    before = text[start : span.start]
    opening = " ".join(text[span.start : min(span.end, span.start + _PROMPT_CHARS)].split())
    answer = model.complete(_WRITE.format(before=before.strip(), opening=opening), max_tokens=48, stop=("\n\n",))
    line = next((" ".join(line.split()) for line in answer.splitlines() if line.strip()), "")
    fault = Source(before).fault(line) if line else "empty"
    if not fault and len(line) > 2 * _PROMPT_CHARS:
        fault = "too long"
    return (extract, "extract", fault) if fault else (line, "model", "")
