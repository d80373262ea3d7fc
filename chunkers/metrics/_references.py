"""Pairs of a mention and a pronoun that refers to it, found by rules: a stand-in for a coreference model."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from rag.types import Document

__all__ = ["mention_pairs"]

_REACH = 2
"""How many sentences before its own a pronoun may refer to."""

_PERSONS = ("he", "him", "his", "himself", "she", "her", "hers", "herself")
_THINGS = ("it", "its", "itself")
_GROUPS = ("they", "them", "their", "theirs", "themselves")
_PRONOUN = re.compile(rf"\b(?:{'|'.join(f'[{w[0].upper()}{w[0]}]{w[1:]}' for w in _PERSONS + _THINGS + _GROUPS)})\b")
_POINTER = re.compile(r"\b(?:[Tt]his|[Tt]hat|[Tt]hese|[Tt]hose|[Ss]uch)[ \t]+(?P<noun>[a-z]{3,})\b")

_NAME = r"(?:[A-Z][\w'&.-]*\w|[A-Z]\w)(?:[ \t]+(?:(?:of|and|for|de|van|von)[ \t]+)?[A-Z][\w'&-]+)*"
_ARTICLE = r"(?:[Tt]he|[Aa]n?|[Oo]ur|[Yy]our|[Mm]y|[Ee]ach|[Ee]very|[Tt]wo|[Aa]ll|[Ss]ome|[Mm]any)"
_NOUN = rf"\b{_ARTICLE}[ \t]+[a-z][\w-]+(?:[ \t]+[a-z][\w-]+)?"
_MENTION = re.compile(rf"(?P<noun>{_NOUN})|(?P<name>\b{_NAME})")
_PLURAL = re.compile(r"(?<![su'i])s\b|\band\b|^(?:two|all|many|some)\b", re.IGNORECASE)
_OPENERS = (
    "a after all although an and as at because before both but by each for from he her his how however i if in it its "
    "later many my no not of on once one or our she since so some such that the their then there these they this those "
    "though thus to under until we what when where whether which while who why with you your"
)
_VERBS = (
    "and are been but can could did does for from had has have having how is may might must not shall should the this "
    "was were when where which who why will with would"
)
_NO_NAMES, _NO_NOUNS = frozenset(_OPENERS.split()), frozenset(_VERBS.split())


def mention_pairs(document: Document, ends: Sequence[int]) -> list[tuple[int, int]]:
    """(start of the mention, end of the pronoun) of every pair, sorted; `ends` are the ends of the sentences.

    Pronouns are those of the third person, and `this`, `these`, `such` .. before a noun. Each goes with the nearest
    compatible mention (a name, or a noun with an article) before it, at most two sentences back: persons with names,
    `they` with plurals or names, `it` with what is no plural. English only; blocks of code say nothing.
    """
    text = document.text
    code = [block.span for block in document.blocks if block.kind == "code"]
    code_starts = [span.start for span in code]
    mentions = [match for match in _MENTION.finditer(text) if not _is_function_word(match)]
    starts = [match.start() for match in mentions]
    pairs = []
    for pronoun in sorted((*_PRONOUN.finditer(text), *_pointers(text)), key=lambda match: match.span()):
        begin, end = pronoun.span()
        inside = bisect_right(code_starts, begin) - 1
        if inside >= 0 and begin < code[inside].end:
            continue
        sentence = bisect_right(ends, begin) - _REACH
        floor = ends[sentence - 1] if sentence > 0 else 0
        before = mentions[bisect_left(starts, floor) : bisect_left(starts, begin)]
        mention = _nearest([one for one in before if one.end() <= begin], pronoun)
        if mention:
            pairs.append((mention.start(), end))
    return pairs


def _nearest(mentions: Sequence[re.Match[str]], pronoun: re.Match[str]) -> re.Match[str] | None:
    """The last mention that agrees with the pronoun; for `this method`, one that names the method before others."""
    noun = pronoun.groupdict().get("noun")
    same = [one for one in mentions if noun and noun in one.group().lower()]
    return next((one for one in reversed(same or mentions) if _agree(one, pronoun.group().lower())), None)


def _pointers(text: str) -> list[re.Match[str]]:
    """`this method`, `such cases`; not `this is`, nor `that the`."""
    return [match for match in _POINTER.finditer(text) if match["noun"] not in _NO_NOUNS]


def _is_function_word(match: re.Match[str]) -> bool:
    """True for a single capitalised word that only opens a sentence."""
    return match["noun"] is None and match.group().lower() in _NO_NAMES


def _agree(mention: re.Match[str], pronoun: str) -> bool:
    plural = bool(_PLURAL.search(mention.group()))
    if pronoun in _PERSONS:
        return mention["name"] is not None
    if pronoun in _THINGS:
        return not plural
    if pronoun in _GROUPS:
        return plural or mention["name"] is not None
    return True
