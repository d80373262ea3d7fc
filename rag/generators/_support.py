"""How well sentences answer a question: a blend of meaning (cosine) and of the question's words (coverage)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.text import lexical_words

if TYPE_CHECKING:
    from rag.protocols import Embedder, TokenCounter, Vectors

__all__ = ["content_words", "coverage", "leading_supports", "supports"]

_STOP_WORDS = (
    "a about an and any are as at be been being but by can could did do does for from had has have he her him his how "
    "i if in into is it its long many may me might much must my no not of often old on or our she should so such than "
    "that the their them then there these they this those to was we were what when where which who whom whose why "
    "will with would you your"
)
_STOP = frozenset(_STOP_WORDS.split())
_ENDINGS = ("ing", "edly", "ed", "ies", "es", "ly", "s")
_QUESTION_PENALTY = 0.15  # a sentence that asks seldom answers; fitted -1.6 on a logistic slope of 10
_AT_ONCE = 8
"""About what the light encoder takes in one pass."""
_COSINE_OF_COVERAGE = (0.38, 0.39)
"""cosine = 0.38 + 0.39 x coverage, fitted on the best sentences: stands in where vectors only match words anyway."""


def content_words(text: str) -> list[str]:
    """Words that carry meaning, in order, with common English endings cut; numbers stay as they are."""
    return [_stem(word) for word in lexical_words(text) if word not in _STOP]


def _stem(word: str) -> str:
    if len(word) > 4 and not word.isdigit():
        for ending in _ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= 4:
                return word[: -len(ending)]
    return word


def coverage(question: str, texts: Sequence[str]) -> list[float]:
    """The share of the question's content words in each text, weighted by their rarity among the texts.

    A word that stands in none of the texts weighs most, so a question about something else covers little.
    """
    bags = [set(content_words(text)) for text in texts]
    wanted = list(dict.fromkeys(content_words(question)))
    counts = Counter(word for bag in bags for word in bag)
    rarity = {word: math.log(1 + (len(bags) - counts[word] + 0.5) / (counts[word] + 0.5)) for word in wanted}
    total = sum(rarity.values())
    return [sum(rarity[word] for word in wanted if word in bag) / total if total else 0.0 for bag in bags]


def supports(question: str, texts: Sequence[str], embedder: Embedder, lexical_weight: float) -> list[float]:
    """Support of every text, about 0 to 1: (1 - w) x cosine + w x coverage, less for texts that are questions."""
    covered = coverage(question, texts)
    cosines = _cosines(texts, embedder, _asked(question, embedder)) or [
        _COSINE_OF_COVERAGE[0] + _COSINE_OF_COVERAGE[1] * value for value in covered
    ]
    return [
        _blend(text, cosine, share, lexical_weight) for text, cosine, share in zip(texts, cosines, covered, strict=True)
    ]


def leading_supports(
    question: str, texts: Sequence[str], embedder: Embedder, lexical_weight: float, *, floor: float, within: float
) -> list[float]:
    """`supports` where it is at least max(floor, within x best), and the best in any case, for less of the encoder.

    No cosine is above 1, so a text's coverage bounds its support: texts are read by falling bound, a few at once, until
    no other can reach that line (the threshold algorithm: Fagin, Lotem & Naor, PODS 2001). Unread texts have -inf.
    A best below the floor is no answer, and then every text that could be better is read.
    """
    if not embedder.matches_meaning:
        return supports(question, texts, embedder, lexical_weight)
    covered = coverage(question, texts)
    bounds = [_blend(text, 1.0, share, lexical_weight) for text, share in zip(texts, covered, strict=True)]
    order = sorted(range(len(texts)), key=lambda at: (-bounds[at], at))
    scores, best, asked = [-math.inf] * len(texts), -math.inf, _asked(question, embedder)
    line = best
    for first in range(0, len(order), _AT_ONCE):
        if bounds[order[first]] < line:
            break
        group = order[first : first + _AT_ONCE]
        for at, cosine in zip(group, _cosines([texts[at] for at in group], embedder, asked), strict=True):
            scores[at] = _blend(texts[at], cosine, covered[at], lexical_weight)
        best = max(best, *(scores[at] for at in group))
        line = max(floor, within * best) if best >= floor else best
    return scores


def _blend(text: str, cosine: float, share: float, lexical_weight: float) -> float:
    return (1 - lexical_weight) * cosine + lexical_weight * share - _QUESTION_PENALTY * text.rstrip().endswith("?")


def _asked(question: str, embedder: Embedder) -> Vectors | None:
    """None for hashed words, which match nothing that coverage does not match better."""
    return embedder.light.embed_question(question) if embedder.matches_meaning else None


def _cosines(texts: Sequence[str], embedder: Embedder, asked: Vectors | None) -> list[float]:
    if asked is None or not texts:
        return []
    light = embedder.light
    return [float(value) for value in light.embed([_head(text, light.counter) for text in texts]) @ asked]


def _head(text: str, counter: TokenCounter) -> str:
    """The part of an over-long sentence that the encoder can read; only its score depends on this."""
    if counter.limit is None or len(text) <= counter.limit or counter.count(text) <= counter.limit:
        return text
    end = counter.offsets(text)[int(0.9 * counter.limit)][0]  # a tenth spare: a cut may split its last word anew
    return text[:end]
