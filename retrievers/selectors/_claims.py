"""Claims that contradict each other: sentences about the same, with another year, number or name in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag.text import lexical_words
from retrievers.selectors._signals import TIERS, bare

__all__ = ["Claim", "agreement", "claims_of", "conflicts", "dissenters"]

_END = re.compile(r"(?<=[.!?])\s+|\n+|(?<=[。！？])")
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"\b[A-ZÀ-Þ][^\W\d_]+")
_FUNCTION_WORDS = (
    "a after all although an and another as at because before both but by during each for from he her his how however "
    "if in is it its many most no not of on one or our several she since so some such that the their then there these "
    "they this those to two under until was we were what when where which while who why with you your"
)
_NO_NAMES = frozenset(_FUNCTION_WORDS.split())
"""Words that are capitalised at the start of a sentence without being names."""
_MOST = 400
"""Sentences that are compared: pairs grow with the square."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of hit number `owner`: its words without what is in a slot, and its slots."""

    owner: int
    words: frozenset[str]
    years: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]

    @property
    def slots(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        return self.years, self.numbers, self.names


def claims_of(texts: Sequence[str], least: int = 4) -> list[Claim]:
    """The sentences with a slot and at least `least` words in all, in order, the first 400."""
    made: list[Claim] = []
    for owner, text in enumerate(texts):
        for sentence in _END.split(bare(text)):
            claim = _claim(owner, sentence)
            if any(claim.slots) and len(claim.words) + len(claim.names) >= least:
                made.append(claim)
    return made[:_MOST]


def _claim(owner: int, sentence: str) -> Claim:
    years = frozenset(_YEAR.findall(sentence))
    numbers = frozenset(_NUMBER.findall(sentence)) - years
    names = frozenset(name.casefold() for name in _NAME.findall(sentence)) - _NO_NAMES
    words = frozenset(word for word in lexical_words(sentence) if not word[0].isdigit()) - names
    return Claim(owner, words, years, numbers, names)


def conflicts(one: Claim, other: Claim, least: float = 0.6) -> bool:
    """True when the two say the same of the same subject, but for values of one kind: years, numbers or names.

    The Jaccard overlap of all words outside of that kind is at least `least`, and each has a value that the other
    lacks. With values of two kinds apart they speak of different things ("Lyon has 0.5", "Paris has 2.1 million").
    Sets of names that differ must share one, or the sentences a year or number: else there is no common subject.
    """
    apart = [place for place, (a, b) in enumerate(zip(one.slots, other.slots, strict=True)) if a != b]
    if len(apart) != 1:
        return False
    [kind] = apart
    mine, theirs = one.slots[kind], other.slots[kind]
    if not (mine - theirs and theirs - mine):
        return False
    subject = len(one.names & other.names) + (len(one.years | one.numbers) if kind == 2 else 0)
    return subject > 0 and _overlap(one, other) >= least


def agrees(one: Claim, other: Claim, least: float = 0.6) -> bool:
    """True when two sentences say the same, with the same values."""
    return one.slots == other.slots and _overlap(one, other) >= least


def _overlap(one: Claim, other: Claim) -> float:
    shared = len(one.words & other.words) + sum(len(a & b) for a, b in zip(one.slots, other.slots, strict=True))
    either = len(one.words | other.words) + sum(len(a & b) for a, b in zip(one.slots, other.slots, strict=True))
    return shared / either if either else 0.0


def dissenters(
    claims: Sequence[Claim], sources: Sequence[str], tiers: Sequence[str], least: float = 0.6
) -> Mapping[int, tuple[int, str]]:
    """Hit -> (a hit that it contradicts, why it is the one that is wrong), for hits that lose a conflict.

    `sources` and `tiers` are those of the hits. A hit loses against a source of a higher tier; or when it stands
    alone, its source is not trusted, and at least two sources that are no less trusted say the same against it.
    """
    lost: dict[int, tuple[int, str]] = {}
    for claim in claims:
        against = [other for other in claims if sources[other.owner] != sources[claim.owner]]
        against = [other for other in against if conflicts(claim, other, least)]
        mine = TIERS.index(tiers[claim.owner])
        if not against or claim.owner in lost or tiers[claim.owner] == "trusted":
            continue
        best = max(against, key=lambda other: TIERS.index(tiers[other.owner]))
        if TIERS.index(tiers[best.owner]) > mine:
            lost[claim.owner] = (best.owner, f"a {tiers[best.owner]} source says otherwise")
        elif not _supported(claim, claims, sources, least):
            voices = {sources[other.owner] for other in against if agrees(other, best, least)}
            if len(voices) > 1:
                lost[claim.owner] = (best.owner, f"it is alone against {len(voices)} sources")
    return lost


def _supported(claim: Claim, claims: Sequence[Claim], sources: Sequence[str], least: float) -> bool:
    return any(sources[other.owner] != sources[claim.owner] and agrees(claim, other, least) for other in claims)


def agreement(question: str, texts: Sequence[str], sources: Sequence[str]) -> list[float]:
    """Isolate, then aggregate (RobustRAG, arXiv 2405.15556): the share of each text's own keywords (numbers and
    capitalised names that the question lacks) that another source has too; 1 for a text without any.

    Deviations: keywords of the passages are compared, not of an answer to each of them.
    """
    asked = set(lexical_words(question))
    keys = []
    for text in texts:
        shown = bare(text)
        names = {name.casefold() for name in _NAME.findall(shown)} - _NO_NAMES
        keys.append((names | set(_NUMBER.findall(shown))) - asked)
    owners: dict[str, set[str]] = {}
    for own, source in zip(keys, sources, strict=True):
        for key in own:
            owners.setdefault(key, set()).add(source)
    return [round(sum(len(owners[key]) > 1 for key in own) / len(own), 6) if own else 1.0 for own in keys]
