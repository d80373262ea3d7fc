"""Groups of sentences for scope: where they end, what each may keep, and the words that must not be lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressors._words import Part
from rag.protocols import Corpus
from rag.spans.protected import Protector, openers
from rag.text import lexical_words
from rag.types import Bubble

__all__ = ["Group", "Keywords", "groups_of", "has", "keywords_of", "ratios", "sizes_left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Consecutive sentences of one hit. `parts` are their numbers; `passed`: nothing to shorten, kept or dropped."""

    place: int
    parts: tuple[int, ...]
    tokens: int
    passed: bool = False


@dataclass(frozen=True, slots=True)
class Keywords:
    """What a rewritten group must still have: words in any case, and facts as they are written."""

    words: tuple[str, ...]
    facts: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.words, *self.facts)

    def lost(self, text: str) -> bool:
        """True when one of them does not stand in the text."""
        return any(fact not in text for fact in self.facts) or any(not has(text, word) for word in self.words)


def has(text: str, word: str) -> bool:
    """The word stands in the text, in any case."""
    return word.lower() in text.lower()


def groups_of(parts: Sequence[Part], alike: Sequence[float], similarity: float, least: int, most: int) -> list[Group]:
    """A new group where a sentence is less alike to the one before it (`alike`) than `similarity`, or over `most`.

    Groups under `least` tokens join the neighbour in their hit that is more alike, when both have `most` together.
    """
    made: list[Group] = []
    for number, part in enumerate(parts):
        last = made[-1] if made else None
        if (
            last
            and last.place == part.place
            and alike[number] >= similarity
            and last.tokens + part.size <= most
            and not (last.passed or _opaque(part))
        ):
            made[-1] = replace(last, parts=(*last.parts, number), tokens=last.tokens + part.size)
        else:
            made.append(Group(place=part.place, parts=(number,), tokens=part.size, passed=_opaque(part)))
    return _outliers(made, alike, least, most)


def _opaque(part: Part) -> bool:
    """Nothing a summary could shorten: hardly a letter, or hardly a word that is not protected (code, rows)."""
    letters = sum(char.isalpha() for char in part.text)
    return 2 * letters < len(part.text.strip()) or part.price >= 0.9 * part.size > 4


def _outliers(groups: Sequence[Group], alike: Sequence[float], least: int, most: int) -> list[Group]:
    made = list(groups)
    at = 0
    while at < len(made):
        group = made[at]
        near = [
            (alike[made[max(at, other)].parts[0]], -other, other)
            for other in (at - 1, at + 1)
            if 0 <= other < len(made)
            and made[other].place == group.place
            and made[other].tokens + group.tokens <= most
            and not made[other].passed
        ]
        if group.tokens >= least or group.passed or not near:
            at += 1
            continue
        other = max(near)[2]
        first, second = sorted((at, other))
        both = made[first].parts + made[second].parts
        made[first : second + 1] = [replace(group, parts=both, tokens=made[first].tokens + made[second].tokens)]
        at = first
    return made


def ratios(groups: Sequence[Group], relevance: Sequence[float], rate: float, low: float, heat: float) -> list[float]:
    """Share of each group that stays: clip(rate * w_i * sum(n) / sum(n * w), low, 1), w = softmax(relevance / heat)."""
    peak = max(relevance, default=0.0)
    weights = [math.exp((value - peak) / heat) for value in relevance]
    total = sum(group.tokens for group in groups)
    mass = sum(group.tokens * weight for group, weight in zip(groups, weights, strict=True))
    return [min(1.0, max(low, rate * weight * total / mass)) for weight in weights]


def sizes_left(groups: Sequence[Group], relevance: Sequence[float], share: Sequence[float], goal: int) -> list[int]:
    """Tokens that each group may keep: the least relevant are shortened first, and only until `goal` is met.

    When all are shortened and it is not, the least relevant are dropped.
    """
    left = [group.tokens for group in groups]
    order = sorted(range(len(groups)), key=lambda at: (round(relevance[at], 6), at))
    for dropping in (False, True):
        for at in order:
            over = sum(left) - goal
            if over <= 0:
                return left
            if groups[at].passed:
                left[at] = 0 if dropping else left[at]
            else:
                floor = 0 if dropping else int(groups[at].tokens * share[at])
                left[at] = max(floor, left[at] - over)
    return left


def keywords_of(
    bubble: Bubble, corpus: Corpus, parts: Sequence[Part], groups: Sequence[Group], most: int
) -> list[Keywords]:
    """For each group its `most` words with the highest tf * idf among the groups, and its protected spans."""
    words = [[w for n in group.parts for w in lexical_words(parts[n].text) if w not in openers] for group in groups]
    spread = Counter(word for found in words for word in set(found))
    protectors: dict[str, Protector] = {}
    made: list[Keywords] = []
    for group, found in zip(groups, words, strict=True):
        counts = Counter(word for word in found if len(word) > 2)
        value = {word: count * math.log(1 + len(groups) / spread[word]) for word, count in counts.items()}
        top = sorted(value, key=lambda word: (-round(value[word], 6), word))[:most]
        doc_id = bubble.hits[group.place].chunk.doc_id
        protector = protectors.setdefault(doc_id, Protector(corpus.document(doc_id)))
        facts = [
            parts[number].text[span.start - parts[number].span.start : span.end - parts[number].span.start]
            for number in group.parts
            for spans in protector.spans(parts[number].span).values()
            for span in spans
        ]
        made.append(Keywords(words=tuple(top), facts=tuple(dict.fromkeys(facts))))
    return made
