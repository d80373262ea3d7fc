"""Whether what a language model wrote about a text says nothing that the text does not say, as far as words tell."""

from __future__ import annotations

import re

from rag.text import lexical_words

__all__ = ["Source", "content_words", "numbers"]

_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_FUNCTION = (
    "a about after also although an and any are as at be because been before being between both but by can could did "
    "do does during each for from had has have having he her hers him his how however i if in into is it its itself "
    "me my of on onto or our ours over she should so some such than that the their theirs them then there these they "
    "this those through to under until up was we were what when where which while who whom whose why will with would "
    "you your s"
)
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""Words that say nothing by themselves. `not`, `no`, `never`, `without`, `all`, `only` are none of them."""


def content_words(text: str) -> frozenset[str]:
    """The words that say something, numbers apart: folded, each CJK character one."""
    return frozenset(
        word for word in lexical_words(text) if word not in _FUNCTION_WORDS and not any(map(str.isdigit, word))
    )


def numbers(text: str) -> frozenset[str]:
    """Numbers as they stand: `3.14` and `5,000` are one each."""
    return frozenset(_NUMBER.findall(text))


class Source:
    """A text that others are held against."""

    def __init__(self, text: str) -> None:
        self._words, self._mixed, self._numbers = content_words(text), set(lexical_words(text)), numbers(text)

    def fault(self, text: str) -> str:
        """The kind of thing in `text` that does not stand in the source; "" when all stands there.

        Strict: a word in another inflection, or a number in another notation, counts as foreign. It cannot see a
        wrong statement made of the right words.
        """
        if numbers(text) - self._numbers:
            return "foreign number"
        mixed = {word for word in lexical_words(text) if any(map(str.isdigit, word)) and not word.isdigit()}
        if content_words(text) - self._words or mixed - self._mixed:
            return "foreign word"
        return ""
