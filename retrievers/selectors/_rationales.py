"""What a question may be looking for, by rules: no model writes these rationales."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.spans.features import Words, question_words
from rag.text import lexical_words

__all__ = ["declarative", "named", "rationales"]

_PRF_TEXTS = 3
_PRF_WORDS = 5
_ASKS = re.compile(
    r"\s*(?:who|whom|what|which|when|where|why|how(?:\s+(?:many|much|long|often|far|old))?)\b"
    r"\s*(?:(is|are|was|were|has|have|had|do|does|did|can|could|will|would|should)\b\s*)?(.*?)[?\s]*$",
    re.IGNORECASE | re.DOTALL,
)
_NAMES = re.compile(r"[A-Z][\w'-]*(?:\s+(?:of\s+|the\s+)?[A-Z][\w'-]*)*|\b\d[\d.,:%-]*")
_COPULAS = ("is", "are", "was", "were")


def rationales(question: str, texts: Sequence[str]) -> list[str]:
    """The question, its keywords, a statement, names and numbers, and the question with words of the best texts.

    `texts`: the hits, best first. Different rationales only, in this order.
    """
    found = [question, " ".join(question_words(question)), declarative(question), named(question)]
    found.append(" ".join([question, *_feedback(question, texts)]))
    distinct = {" ".join(one.split()).rstrip("? ").casefold(): one for one in reversed(found) if one.strip()}
    return [one for one in found if distinct.pop(" ".join(one.split()).rstrip("? ").casefold(), None) is not None]


def declarative(question: str) -> str:
    """`X was` for "Who was X?", `X rises` as it stands for "Which X rises?"; "" for what asks otherwise."""
    match = _ASKS.match(question)
    if match is None or not match[2].strip():
        return ""
    verb, rest = match[1], match[2].strip()
    return f"{rest} {verb}" if verb and verb.lower() in _COPULAS else rest


def named(question: str) -> str:
    """Names and numbers of the question; the capital that opens it makes no name."""
    first = len(question) - len(question.lstrip())
    words = []
    for match in _NAMES.finditer(question):
        text = match[0]
        if match.start() == first and not text[0].isdigit():
            text = text.partition(" ")[2]
        words.append(text)
    return " ".join(word for word in words if word)


def _feedback(question: str, texts: Sequence[str]) -> list[str]:
    """The words with the largest count * IDF in the best texts that the question does not have."""
    asked = set(lexical_words(question))
    best = [word for text in texts[:_PRF_TEXTS] for word in lexical_words(text)]
    terms = sorted({word for word in question_words(" ".join(best)) if word not in asked and len(word) > 2})
    if not terms:
        return []
    idf = Words(terms, texts).idf()
    weight = {term: round(best.count(term) * float(idf[at]), 6) for at, term in enumerate(terms)}
    return sorted(terms, key=lambda term: (-weight[term], term))[:_PRF_WORDS]
