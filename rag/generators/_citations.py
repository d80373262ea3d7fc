"""Checks what a language model wrote against the context, and turns its marks into exact citations.

A sentence is supported when the pieces that it names (or, named none, the piece that fits it best) hold enough
of its content words and every one of its numbers. In the text that comes out a mark stands exactly where a citation
holds: marks that failed are taken out, and sentences that were supported without a mark get theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rag.answer import Citation, Generation, GenerationStats, Prompt
from rag.generators._sentences import Sentence
from rag.generators._support import content_words
from rag.prompt import MARKS, NOT_FOUND, parse_marks
from rag.types import Span

__all__ = ["Verified", "says_not_found", "verified", "verify"]

_SPACED_MARKS = re.compile(rf"\s*{MARKS.pattern}")
_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """An answer whose marks all hold. `supported[i]` judges the text at `sentences[i]`."""

    text: str
    citations: tuple[Citation, ...]
    sentences: tuple[Span, ...]
    supported: tuple[bool, ...]


def says_not_found(text: str) -> bool:
    """True when the model said, in the words it was given, that the documents hold no answer."""
    return not text.strip() or text.strip().casefold().startswith(NOT_FOUND.rstrip(".").casefold())


def verified(
    text: str, found: Sequence[Sentence], min_overlap: float, *, prompt: Prompt, stats: GenerationStats
) -> Generation:
    """The generation that comes out of what a model wrote; the raw text stays in `notes["written"]`."""
    if says_not_found(text):
        return Generation(text=NOT_FOUND, prompt=prompt, stats=stats)
    checked = verify(text, found, min_overlap)
    return Generation(
        text=checked.text,
        citations=checked.citations,
        sentences=checked.sentences,
        supported=checked.supported,
        prompt=prompt,
        stats=stats,
        notes={"written": text},
    )


def verify(text: str, found: Sequence[Sentence], min_overlap: float) -> Verified:
    """`found` are the sentences of the context. Support needs `min_overlap` of a sentence's content words."""
    out, at = "", 0
    citations: list[Citation] = []
    spans: list[Span] = []
    supported: list[bool] = []
    for span, marks in parse_marks(text):
        body = _SPACED_MARKS.sub("", text[span.start : span.end]).strip()
        if body:
            cited = _evidence(body, marks, found, min_overlap)
            gap = text[at : span.start] if out else ""
            marked = body + (" " + "".join(f"[{one.mark}]" for one in cited) if cited else "")
            spans.append(Span(len(out) + len(gap), len(out) + len(gap) + len(marked)))
            out += gap + marked
            supported.append(bool(cited))
            citations.extend(one for one in cited if one not in citations)
        at = span.end
    return Verified(text=out, citations=tuple(citations), sentences=tuple(spans), supported=tuple(supported))


def _evidence(body: str, marks: Sequence[int], found: Sequence[Sentence], min_overlap: float) -> list[Citation]:
    """One citation for every piece that helps to support `body`; [] when it is not supported."""
    words, numbers = set(content_words(body)), _numbers(body)
    if not words:
        return []
    by_mark: dict[int, list[Sentence]] = {}
    for sentence in found:
        by_mark.setdefault(sentence.mark, []).append(sentence)
    if marks:
        named = [mark for mark in marks if mark in by_mark]
    else:
        named = sorted(by_mark, key=lambda mark: (-len(words & _words(by_mark[mark])), mark))[:1]
    held = [sentence for mark in named for sentence in by_mark[mark]]
    enough = len(words & _words(held)) >= min_overlap * len(words)
    if not enough or not numbers <= {number for sentence in held for number in _numbers(sentence.text)}:
        return []
    best = [max(by_mark[mark], key=lambda sentence: _likeness(words, numbers, sentence)) for mark in named]
    return [sentence.cite() for sentence in best if words & set(content_words(sentence.text))]


def _words(sentences: Sequence[Sentence]) -> set[str]:
    return {word for sentence in sentences for word in content_words(sentence.text)}


def _likeness(words: set[str], numbers: set[str], sentence: Sentence) -> tuple[int, float]:
    """Shared words and numbers first; among equals the sentence that says little else. Ties go to the earlier one."""
    own = set(content_words(sentence.text))
    return len(words & own) + len(numbers & _numbers(sentence.text)), -len(own)


def _numbers(text: str) -> set[str]:
    """Numbers as written, without thousands commas: "5,000" and "5000" are one."""
    return {_THOUSANDS.sub("", number) for number in _NUMBER.findall(text)}
