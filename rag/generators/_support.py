"""How well sentences answer a question: a blend of meaning (cosine) and of the question's words (coverage)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.spans.features import unit_vectors
from rag.text import lexical_words

if TYPE_CHECKING:
    from rag.protocols import Corpus, Embedder, TokenCounter

__all__ = ["content_words", "coverage", "supports"]

_STOP_WORDS = (
    "a about an and any are as at be been being but by can could did do does for from had has have he her him his how "
    "i if in into is it its long many may me might much must my no not of often old on or our she should so such than "
    "that the their them then there these they this those to was we were what when where which who whom whose why "
    "will with would you your"
)
_STOP = frozenset(_STOP_WORDS.split())
_ENDINGS = ("ing", "edly", "ed", "ies", "es", "ly", "s")
_QUESTION_PENALTY = 0.15  # a sentence that asks seldom answers; fitted -1.6 on a logistic slope of 10
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


def supports(
    question: str, texts: Sequence[str], embedder: Embedder, lexical_weight: float, corpus: Corpus | None = None
) -> list[float]:
    """Support of every text, about 0 to 1: (1 - w) x cosine + w x coverage, less for texts that are questions.

    A `corpus` keeps the vectors of sentences: what a selector has read of them is not embedded again.
    """
    covered = coverage(question, texts)
    cosines = _cosines(question, texts, embedder, corpus) or [
        _COSINE_OF_COVERAGE[0] + _COSINE_OF_COVERAGE[1] * value for value in covered
    ]
    return [
        (1 - lexical_weight) * cosine + lexical_weight * share - _QUESTION_PENALTY * text.rstrip().endswith("?")
        for text, cosine, share in zip(texts, cosines, covered, strict=True)
    ]


def _cosines(question: str, texts: Sequence[str], embedder: Embedder, corpus: Corpus | None) -> list[float]:
    """Cosines with the question; [] for hashed words, which match nothing that coverage does not match better."""
    if not embedder.matches_meaning or not texts:
        return []
    if corpus is None:
        matrix = embedder.light.embed([_head(text, embedder.light.counter) for text in texts])
    else:
        kept = unit_vectors(texts, embedder, corpus)
        assert kept is not None  # noqa: S101  there is an embedder
        matrix = kept
    return [float(value) for value in matrix @ embedder.light.embed_question(question)]


def _head(text: str, counter: TokenCounter) -> str:
    """The part of an over-long sentence that the encoder can read; only its score depends on this."""
    if counter.limit is None or len(text) <= counter.limit or counter.count(text) <= counter.limit:
        return text
    end = counter.offsets(text)[int(0.9 * counter.limit)][0]  # a tenth spare: a cut may split its last word anew
    return text[:end]
