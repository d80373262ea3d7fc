"""Drafts for speculative decoding: what followed the same tokens earlier, in the prompt, in the answer so far, or in
other texts. No second model; finding a guess takes microseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from rag.engine.automaton import SuffixAutomaton
from rag.engine.errors import EngineError

__all__ = ["Draft", "PromptLookup", "SuffixDraft"]

_SEAM = -1
"""Between texts, where no guess goes on."""


class Draft(Protocol):
    def extend(self, ids: Sequence[int]) -> None:
        """The text goes on with `ids`."""

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow, maybe none."""

    def learn(self, proposed: int, accepted: int) -> None:
        """Of the last guess of `proposed` tokens the first `accepted` were right."""


class PromptLookup:
    """Prompt lookup decoding (A. Saxena, 2023): the `tokens` tokens that followed the last earlier place of the present
    last `ngram` tokens, or of fewer where that many are new."""

    def __init__(self, ids: Sequence[int], *, ngram: int = 3, tokens: int = 10) -> None:
        if ngram < 1 or tokens < 1:
            raise EngineError(f"prompt lookup: ngram and tokens must be >= 1, not {ngram} and {tokens}")
        self.ngram, self.tokens = ngram, tokens
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        for token in ids:  # an n-gram is noted once something follows it, so the last one is never its own match
            end = len(self._text)
            for length in range(1, min(self.ngram, end) + 1):
                self._after[tuple(self._text[end - length :])] = end
            self._text.append(token)

    def propose(self, most: int) -> list[int]:
        for length in range(min(self.ngram, len(self._text)), 0, -1):
            at = self._after.get(tuple(self._text[-length:]))
            if at is not None:
                return self._text[at : at + min(most, self.tokens)]
        return []

    def learn(self, proposed: int, accepted: int) -> None:
        pass


class SuffixDraft:
    """SuffixDecoding, arXiv 2411.04975: the continuation of the longest match of the text's end, by a suffix automaton;
    of several continuations the one that was seen most often.

    A guess goes on while the chance that all of it so far is right stays at `threshold` or more: SpecDec++, arXiv
    2405.19715, with the chance of one token from the length of its match and from how often it followed. The chance of
    a match length is learned from what was accepted, so guesses grow where the answer copies and stop where not.
    `others` are texts apart from the present one (`ids`): earlier answers, documents.

    Deviations: an automaton over all texts instead of two suffix trees; the chance is counted, no trained head tells
    it; one chain of tokens, not a tree of them.
    """

    def __init__(
        self,
        ids: Sequence[int],
        *,
        others: Iterable[Sequence[int]] = (),
        threshold: float = 0.4,
        most: int = 32,
        least_match: int = 1,
    ) -> None:
        if not 0 < threshold <= 1 or most < 1 or least_match < 1:
            raise EngineError(
                "suffix draft: threshold must lie in (0, 1], most and least_match be >= 1, not "
                f"{threshold}, {most} and {least_match}"
            )
        self.threshold, self.most, self.least_match = threshold, most, least_match
        self._known = SuffixAutomaton()
        self._hits: dict[int, list[float]] = {}
        self._last: list[int] = []
        self._unread: list[int] = []
        for text in others:
            self.extend([*text, _SEAM])
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        self._unread += ids  # read when a guess is wanted: the first token of an answer does not wait for that

    def propose(self, most: int) -> list[int]:
        for token in self._unread:
            self._known.append(token)
        self._unread.clear()
        state, match = self._known.longest_repeat()
        guess: list[int] = []
        self._last = []
        chance = 1.0
        while match >= self.least_match and len(guess) < min(most, self.most):
            token, share, state = self._known.likeliest(state)
            if token < 0:
                break
            chance *= share * self._rate(match)
            if chance < self.threshold:
                break
            guess.append(token)
            self._last.append(match)
            match += 1
        return guess

    def learn(self, proposed: int, accepted: int) -> None:
        """Every token up to the first wrong one was a trial of its match length."""
        for place, match in enumerate(self._last[: accepted + 1]):
            right, trials = self._counts(match)
            self._hits[_bucket(match)] = [right + (place < accepted), trials + 1]

    def _rate(self, match: int) -> float:
        right, trials = self._counts(match)
        return right / trials

    def _counts(self, match: int) -> list[float]:
        """(right, trials); before any as if two trials had shown that a match of n tokens goes on n of n + 1 times."""
        prior = 2 * match / (match + 1)
        return self._hits.get(_bucket(match), [prior, 2.0])


def _bucket(match: int) -> int:
    return min(6, int(math.log2(match)))
