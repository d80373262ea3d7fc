"""A suffix automaton that grows token by token and knows how often everything in it occurs."""

from __future__ import annotations

__all__ = ["SuffixAutomaton"]

_WALK = 64


class SuffixAutomaton:
    """Blumer et al. 1985; `append` takes constant time on average, besides counting.

    A state stands for token sequences that end at the same places; `length` is that of its longest. Counts are those
    of places, kept up to date along at most 64 suffixes of the text: in a text that repeats one token for long, short
    suffixes are counted too low, and appending stays fast.
    """

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link: list[int] = [-1]
        self._length: list[int] = [0]
        self._count: list[int] = [0]
        self._last = 0

    def __len__(self) -> int:
        """Tokens appended."""
        return self._length[self._last]

    def append(self, token: int) -> None:
        new = self._state(self._length[self._last] + 1, {}, 0, 0)
        at = self._last
        while at >= 0 and token not in self._next[at]:
            self._next[at][token] = new
            at = self._link[at]
        if at >= 0:
            self._link[new] = self._split(at, token)
        self._last = new
        for _ in range(_WALK):
            self._count[new] += 1
            new = self._link[new]
            if new <= 0:
                break

    def _split(self, at: int, token: int) -> int:
        """The state of exactly what `at` stands for and then `token`; cloned from one that stands for more."""
        found = self._next[at][token]
        if self._length[found] == self._length[at] + 1:
            return found
        clone = self._state(self._length[at] + 1, dict(self._next[found]), self._link[found], self._count[found])
        self._link[found] = clone
        while at >= 0 and self._next[at].get(token) == found:
            self._next[at][token] = clone
            at = self._link[at]
        return clone

    def _state(self, length: int, after: dict[int, int], link: int, count: int) -> int:
        self._next.append(after)
        self._link.append(link)
        self._length.append(length)
        self._count.append(count)
        return len(self._next) - 1

    def longest_repeat(self) -> tuple[int, int]:
        """(state, length) of the longest end of the text that also stands somewhere else in it."""
        state = max(0, self._link[self._last])
        return state, self._length[state]

    def likeliest(self, state: int) -> tuple[int, float, int]:
        """(token, its share of what followed, the state after it); token -1 where nothing did. Of equals the smallest
        token."""
        after = self._next[state]
        if not after:
            return -1, 0.0, state
        token = min(after, key=lambda one: (-self._count[after[one]], one))
        return token, self._count[after[token]] / sum(self._count[one] for one in after.values()), after[token]

    def occurrences(self, ids: list[int]) -> int:
        """How often `ids` stand in the text, overlaps counted."""
        state = 0
        for token in ids:
            found = self._next[state].get(token)
            if found is None:
                return 0
            state = found
        return self._count[state]
