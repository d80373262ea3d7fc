"""Refilling a choice of units so that it comes within 3 % of its target, at the least loss of value.

Sentences are lumps: taken one by one as they fit, they can leave more room than 3 % of the target. Then the last
that were taken are freed, the 1, 2, 4, ... of least gain and at last half of all, and the room is filled anew from
these and all that are left: of all sets of them that come to between 97 % and all of the target, the one with the
largest sum of gain * tokens. The first step that has such a set decides. The half with the larger gains, at least one
unit, always stays: so a set is found whenever the better half can be made up to the band at all. Targets
under 34 tokens, of which 3 % are less than a token, are not refilled: only one size would do, at any loss.
Exact (a knapsack over tokens; Kellerer et al., Knapsack Problems, 2004, chapter 2), in units * tokens operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.int64]

__all__ = ["NEAR", "Fill", "Lumps", "in_band", "met"]

NEAR = 0.97
"""A context of that share of the target or more is near enough."""
_ROUNDS = 8

_CELLS = 2_000_000
"""Units times tokens of the largest table: a step over that is left out, so memory is at most twice 16 MB."""
_NONE = -(1 << 60)


@dataclass(frozen=True, kw_only=True)
class Lumps:
    """Units: tokens and the chunk of each by number, the gains of those that may be freed or added; `needs`: unit ->
    the one that it leans on.

    A choice has the tokens of its units and `separator` between any two chunks.
    """

    tokens: Mapping[int, int]
    owners: Mapping[int, int]
    gains: Mapping[int, float]
    separator: int
    needs: Mapping[int, int]

    def size(self, chosen: Iterable[int]) -> int:
        """Tokens of a choice, 0 for none."""
        numbers = set(chosen)
        owners = {self.owners[number] for number in numbers}
        return sum(self.tokens[number] for number in numbers) + self.separator * max(0, len(owners) - 1)

    def taken(self, order: Iterable[int], budget: int) -> set[int]:
        """In that order what fits."""
        chosen: set[int] = set()
        owners: set[int] = set()
        used = 0
        for number in order:
            fee = self.separator if owners and self.owners[number] not in owners else 0
            if used + self.tokens[number] + fee <= budget:
                used += self.tokens[number] + fee
                chosen.add(number)
                owners.add(self.owners[number])
        return chosen


@dataclass(frozen=True, kw_only=True)
class Fill:
    """A choice of at most the target; `refilled` are units that only the refill took. `near`: it has 97 % or more."""

    chosen: frozenset[int]
    refilled: frozenset[int] = frozenset()
    near: bool = True


def met(fill: Callable[[int], set[int]], count: Callable[[set[int]], int], lumps: Lumps, target: int) -> Fill:
    """What `fill` takes for a budget, refilled where `count`, the tokens of the text itself, is under 97 % of `target`.

    Sizes of units hardly ever add up to those of the text, so the budget is moved by the difference.
    """
    least = ceil(NEAR * target)
    budget, best, most = target, set[int](), 0
    for _ in range(_ROUNDS):
        chosen = fill(budget)
        tokens = count(chosen)
        if most < tokens <= target:
            best, most = chosen, tokens
        if least <= tokens <= target or not tokens or len(chosen) >= len(lumps.gains):
            break
        budget = (min(budget, lumps.size(chosen)) if tokens > target else budget) + target - tokens
    if most >= least or least == target:
        return Fill(chosen=frozenset(best), near=most >= least)
    shifts = [most - lumps.size(best) if best else tokens - lumps.size(chosen)]
    for _ in range(_ROUNDS):
        found = in_band(lumps, best, least - min(shifts), target - max(shifts))
        if found is None:
            break
        tokens = count(found)
        if least <= tokens <= target:
            return Fill(chosen=frozenset(found), refilled=frozenset(found - best))
        shifts.append(tokens - lumps.size(found))
    return Fill(chosen=frozenset(best), near=False)


def in_band(lumps: Lumps, chosen: set[int], low: int, high: int) -> set[int] | None:
    """The choice refilled such that `low` <= size <= `high`; None where no set of units (or no table) allows it.

    A unit that is added brings what it leans on along, or has it there, as long as the band can be reached so at any
    step; only then are units added without.
    """
    ranked = sorted(chosen & lumps.gains.keys(), key=lambda number: (lumps.gains[number], -number))
    half = len(ranked) // 2
    steps = [0, *(1 << at for at in range(half.bit_length()) if 1 << at < half), *([half] if half else [])]
    for needs in (lumps.needs, {}) if lumps.needs else (lumps.needs,):
        for count in steps:
            fixed = chosen - set(ranked[:count])
            fixed |= {lumps.needs[number] for number in fixed if number in lumps.needs} & chosen
            added = _filled(lumps, fixed, needs, low, high)
            if added is not None:
                return fixed | added
    return None


def _filled(lumps: Lumps, fixed: set[int], needs: Mapping[int, int], low: int, high: int) -> set[int] | None:
    """The best set to add to `fixed`."""
    import numpy as np

    room = high - lumps.size(fixed) + (0 if fixed else lumps.separator)
    least = max(room - (high - low), 0 if fixed else 1)
    groups = _groups(lumps, fixed, needs, room)
    rows = sum(len(group) + 1 for _, group in groups)
    if room < least or rows * (room + 1) > _CELLS:
        return None
    table = np.full(room + 1, _NONE, dtype=np.int64)
    table[0] = 0
    made = []
    for fee, group in groups:
        made.append(_Group(lumps, fee, group, table))
        table = made[-1].best
    at = room - int(table[least:][::-1].argmax())
    if table[at] <= _NONE // 2:
        return None
    added: set[int] = set()
    for one in reversed(made):
        at = one.trace(at, added)
    return added


def _groups(
    lumps: Lumps, fixed: set[int], needs: Mapping[int, int], room: int
) -> list[tuple[int, list[tuple[int, int]]]]:
    """(what the first unit of a chunk costs on top, its units as (number, end)) for every chunk that has free units.

    A unit stands after the one that it leans on; those up to its `end` lean on it, directly or not. What leans on a
    unit of another chunk that is not fixed is left out.
    """
    free = [n for n in sorted(lumps.gains) if n not in fixed and lumps.tokens[n] <= room]
    there, below = set(free), dict[int, list[int]]()
    roots: dict[int, list[int]] = {}
    for number in free:
        parent = needs.get(number, -1)
        if parent < 0 or parent in fixed:
            roots.setdefault(lumps.owners[number], []).append(number)
        elif parent in there and lumps.owners[parent] == lumps.owners[number]:
            below.setdefault(parent, []).append(number)
    open_chunks = {lumps.owners[number] for number in fixed}
    return [(0 if owner in open_chunks else lumps.separator, _laid(found, below)) for owner, found in roots.items()]


def _laid(roots: Sequence[int], below: Mapping[int, Sequence[int]]) -> list[tuple[int, int]]:
    """(number, place after the last that leans on it), each before those that lean on it."""
    order: list[int] = []
    stack = list(reversed(roots))
    while stack:
        number = stack.pop()
        order.append(number)
        stack.extend(reversed(below.get(number, ())))
    ends: dict[int, int] = {}
    place = {number: at for at, number in enumerate(order)}
    for number in reversed(order):
        ends[number] = max([place[number] + 1, *(ends[child] for child in below.get(number, ()))])
    return [(number, ends[number]) for number in order]


class _Group:
    """The tables of one chunk: `best`[t] is the largest value of units of this chunk and those before with t tokens."""

    def __init__(self, lumps: Lumps, fee: int, units: Sequence[tuple[int, int]], base: Table) -> None:
        self._fee, self._units = fee, units
        self._costs = [lumps.tokens[number] for number, _ in units]
        self._values = [round(1e6 * lumps.gains[number]) * lumps.tokens[number] for number, _ in units]
        self._open: list[Table] = [base] * (len(units) + 1)
        self._first: list[Table] = [base] * (len(units) + 1)
        for at in range(len(units) - 1, -1, -1):
            end = units[at][1]
            self._open[at] = _better(self._open[end], self._open[at + 1], self._costs[at], self._values[at])
            self._first[at] = self._first[end]
            if fee:
                self._first[at] = _better(self._first[end], self._open[at + 1], self._costs[at] + fee, self._values[at])
        self.best = self._first[0] if fee else self._open[0]

    def trace(self, at: int, added: set[int]) -> int:
        """Adds the units of the best choice with `at` tokens; returns the tokens that are those of chunks before."""
        tables, fee, place = (self._first, self._fee, 0) if self._fee else (self._open, 0, 0)
        while place < len(self._units):
            number, end = self._units[place]
            if tables[place][at] == tables[end][at]:
                place = end
                continue
            added.add(number)
            at -= self._costs[place] + fee
            tables, fee, place = self._open, 0, place + 1
        return at


def _better(left: Table, taken: Table, cost: int, value: int) -> Table:
    """The larger, for each amount of tokens, of leaving a unit and of taking it."""
    made = left.copy()
    if cost < len(made):
        import numpy as np

        np.maximum(made[cost:], taken[: len(made) - cost] + value, out=made[cost:])
    return made
