"""Other ways to ask one question, made by rules: no model, the same list for the same question.

English only: a question in another language has no stop words and matches no template, so it has few variants or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from rag.text import lexical_words

__all__ = ["RULES", "decompose", "keywords", "variants_of"]

_STOP_WORDS = (
    "a about an and any are as at be been being between but by can could did do does for from had has have he her "
    "his how i if in into is it its many may me might much must my no not of often on or our she should so such "
    "than that the their them then there these they this those to under was we were what when where which who whom "
    "whose why will with would you your compare difference versus vs tell give list please both either"
)
_STOP = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"[^\W_](?:[\w'’.,&/-]*\w)?")
_OPENING = re.compile(
    r"^\s*(?:(?:in|on|by|for|at|to|of|from|under)\s+)?(?:what|who|whom|whose|which|when|where|why|how)"
    r"(?:\s+(?:many|much|long|often|far|high|old|large))?\s+"
    r"(?:(?:is|are|was|were|do|does|did|can|could|may|must|should|will|would|has|have|had)\s+)?",
    re.IGNORECASE,
)
_AUXILIARY = re.compile(
    r"^\s*(?:is|are|was|were|do|does|did|can|could|may|must|should|will|would|has|have|had)\s+", re.I
)
_TWO_QUESTIONS = re.compile(
    r"[,;]?\s+and\s+(?=(?:what|who|whom|whose|which|when|where|why|how|in which|on which|by which)\b)|\?\s+", re.I
)
_THING = r"(?P<{0}>[^,?;]+?)"
_COMPARISONS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^(?P<rest>.*?)\bdifferences?\s+between\s+{_THING.format('a')}\s+and\s+{_THING.format('b')}\s*[?.]?$",
        rf"^(?P<rest>.*?)\bcompare\s+{_THING.format('a')}\s+(?:and|with|to)\s+{_THING.format('b')}\s*[?.]?$",
        rf"^(?P<rest>.*?)\b{_THING.format('a')}\s+(?:versus|vs\.?)\s+{_THING.format('b')}\s*[?.]?$",
        rf"^(?P<rest>.+?),\s*{_THING.format('a')}\s+or\s+{_THING.format('b')}\s*\?$",
    )
)
_BOTH = re.compile(
    r"^(?i:are|is|were|was|do|does|did|have|has)\s+(?:both\s+)?(?P<a>(?:the\s+)?[A-Z][^,?;]*?)\s+and\s+"
    r"(?P<b>(?:the\s+)?[A-Z](?:\S*)(?:\s+[A-Z]\S*)*)\s+(?P<rest>[a-z][^?]*)\?$"
)
_ENTITY = re.compile(r"\"[^\"]{2,60}\"|“[^”]{2,60}”|[A-Z][\w'’&.-]*\w(?:\s+(?:of\s+|the\s+|de\s+)?[A-Z][\w'’&-]*)*")
_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?%?")


def keywords(question: str) -> str:
    """The question's words that carry meaning, in order; "" when it has no others."""
    return " ".join(word for word in _WORD.findall(question) if word.casefold() not in _STOP)


def declarative(question: str) -> str:
    """The question as the beginning of a statement: its opening and its question mark taken off."""
    text = question.strip()
    cut = _OPENING.sub("", text, count=1)
    cut = _AUXILIARY.sub("", text, count=1) if cut == text else cut
    return cut.rstrip("? ").strip() if cut != text else ""


def decompose(question: str) -> list[str]:
    """The parts of a double question or of a comparison; [] for a question that is one.

    "What is A and how is B?" asks two things; "compare A and B" and "Which is older, A or B?" ask one of each.
    """
    parts = [part.strip(" ,;?") for part in _TWO_QUESTIONS.split(question.strip()) if part.strip(" ,;?")]
    if len(parts) > 1 and (_OPENING.match(question) or _AUXILIARY.match(question)):
        return [f"{part}?" for part in parts]
    both = _BOTH.match(question.strip())
    for found in (*(pattern.match(question.strip()) for pattern in _COMPARISONS), both):
        if found:
            rest = keywords(found["rest"])
            return [f"{found[name].strip()} {rest}".strip() for name in ("a", "b")]
    return []


def entities(question: str) -> list[str]:
    """Names, quoted words and numbers as one query; with two names or more, one query a name with the other keywords.

    A capital that only opens the question is no name. A single name or number alone would find too much: [].
    """
    names, rest = [], question
    for found in _ENTITY.finditer(question):
        words = found.group().strip('"“”').split()
        while words and words[0].casefold() in _STOP:
            words = words[1:]
        if words and (len(words) > 1 or question[: found.start()].strip() or any(c.isdigit() for c in words[0])):
            names.append(" ".join(words))
            rest = rest.replace(names[-1], " ", 1)
    numbers = _NUMBER.findall(rest)
    if len(names) + len(numbers) < 2:
        return []
    others = keywords(rest)
    return [" ".join([*names, *numbers]), *(f"{name} {others}".strip() for name in names if len(names) > 1)]


RULES: Mapping[str, Callable[[str], Iterable[str]]] = {
    "decompose": decompose,
    "keywords": lambda question: [keywords(question)],
    "entities": entities,
    "declarative": lambda question: [declarative(question)],
}


def variants_of(question: str, rules: Iterable[str], most: int, written: Iterable[str] = ()) -> list[str]:
    """At most `most` variants in the order of `rules`; none says the very words of the question or of another.

    `written` is what a model wrote: the variants of the rule `model`.
    """
    seen = {tuple(lexical_words(question)), ()}
    made: list[str] = []
    for rule in rules:
        for variant in written if rule == "model" else RULES[rule](question):
            words = tuple(lexical_words(variant))
            if words not in seen:
                seen.add(words)
                made.append(variant)
    return made[:most]
