"""Which regular expressions of unknown origin may run here: those whose time on one short line is bounded.

The parse tree of Python's own `re` is judged, always on the safe side: a refused pattern is no error of anybody, there
are other ways to cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from string import printable
from typing import Any

__all__ = ["MAX_CHARS", "compiled"]

MAX_CHARS = 300
"""Of the source of a pattern."""

_SAMPLES = frozenset(printable + "éÉß一あя…–§•٣\u00a0")
"""Characters that stand for all when two sets are compared."""

_FOREIGN = frozenset(char for char in _SAMPLES if not char.isascii())

_MAX_DEGREE = 2
"""So many long repeats of overlapping sets may follow each other: time grows with this power of a line's length."""

_MAX_CHOICES = 500
"""And with the product of all alternatives, of optional parts and of short repeats."""

_SHORT = 3
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_TAIL = re.compile(r"(?<!\\)\.\*\??\$?$")
_CATEGORIES: Mapping[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda char: char.isalnum() or char == "_",
}

_Set = frozenset[str]


def compiled(source: str) -> re.Pattern[str] | str:
    """The pattern, or the reason why it is refused. A `.*` at its end is dropped: only starts are of interest."""
    if not source or len(source) > MAX_CHARS:
        return f"a pattern has 1 to {MAX_CHARS} characters, this one {len(source)}"
    try:
        source = _TAIL.sub("", source)
        pattern = re.compile(source)
        parser: Any = import_module("re._parser")
        _Judge().walk(list(parser.parse(source, pattern.flags)), [])
    except _RefusedError as error:
        return str(error)
    except (re.error, ValueError, OverflowError, RecursionError, ImportError) as error:
        return f"no valid pattern: {error}"
    return "the pattern matches the empty text" if pattern.match("") else pattern


class _RefusedError(Exception):
    """Carries the reason."""


class _Judge:
    """Walks a parse tree once. `active` are the sets of the long repeats that can still give characters to, or take
    them from, what follows."""

    def __init__(self) -> None:
        self._choices = 1

    def walk(self, items: Sequence[Any], active: list[_Set]) -> list[_Set]:
        for operator, value in items:
            name = str(operator)
            if name in _REPEATS:
                active = self._repeat(int(value[0]), int(value[1]), list(value[2]), active)
            elif name == "SUBPATTERN":
                active = self.walk(list(value[-1]), active)
            elif name == "BRANCH":
                self._choose(len(value[1]))
                active = _distinct(self.walk(list(way), active) for way in value[1])
            elif name != "AT":
                active = _after(active, _accepted(operator, value))
        return active

    def _repeat(self, least: int, most: int, body: Sequence[Any], active: list[_Set]) -> list[_Set]:
        if most <= 1:
            self._choose(2 - least)
            return _distinct([self.walk(body, active), active])
        accepted = _loop_set(body)
        if least:
            active = _after(active, accepted)
        if most <= _SHORT and len(body) == 1:
            self._choose(most - least + 1)
            return active
        active = [*active, accepted]
        if sum(1 for one in active if one & accepted) > _MAX_DEGREE:
            raise _RefusedError("too many repeats that match the same characters follow each other")
        return active

    def _choose(self, ways: int) -> None:
        self._choices *= ways
        if self._choices > _MAX_CHOICES:
            raise _RefusedError("too many alternatives and optional parts")


def _after(active: list[_Set], accepted: _Set) -> list[_Set]:
    """A repeat that cannot match what must come next has one place to end: it is settled."""
    return [one for one in active if one & accepted]


def _distinct(ways: Iterable[list[_Set]]) -> list[_Set]:
    """All that some way leaves active, as often as the way that leaves it most often."""
    merged: list[_Set] = []
    for way in ways:
        for one in way:
            if merged.count(one) < way.count(one):
                merged.append(one)
    return merged


def _loop_set(body: Sequence[Any]) -> _Set:
    """All that a repeated group can match. Inside of it at most one part may vary in length, and then a fixed part
    that this one cannot match has to tell one round from the next."""
    varying: list[_Set] = []
    fixed: list[_Set] = []
    for operator, value in _flat(body):
        if str(operator) in _REPEATS:
            inner = _flat(list(value[2]))
            if len(inner) != 1:
                raise _RefusedError("a repeat inside of a repeat")
            varying.append(_accepted(*inner[0]))
        else:
            fixed.append(_accepted(operator, value))
    if varying and (len(varying) > 1 or not any(one.isdisjoint(varying[0]) for one in fixed)):
        raise _RefusedError("a repeat inside of a repeat")
    return frozenset[str]().union(*varying, *fixed)


def _flat(items: Sequence[Any]) -> list[Any]:
    """The items, plain groups opened."""
    found: list[Any] = []
    for operator, value in items:
        found.extend(_flat(list(value[-1])) if str(operator) == "SUBPATTERN" else [(operator, value)])
    return found


def _accepted(operator: Any, value: Any) -> _Set:
    """The sample characters that one item matches, in both cases; _RefusedError for all that is no set."""
    name = str(operator)
    found: _Set = frozenset()
    if name == "ANY":
        return _SAMPLES
    if name == "LITERAL":
        found = _between(value, value)
    elif name == "NOT_LITERAL":
        return _SAMPLES - {chr(value)}
    elif name == "RANGE":
        found = _between(value[0], value[1])
    elif name == "CATEGORY":
        found = _category(str(value))
    elif name == "IN":
        negated = str(value[0][0]) == "NEGATE"
        sets = [_accepted(*one) for one in value[1:]] if negated else [_accepted(*one) for one in value]
        if negated:  # characters that are not excluded with certainty stay in
            return _SAMPLES - frozenset(char for one in sets for char in one if char.isascii() and not char.isalpha())
        found = frozenset[str]().union(*sets)
    else:
        raise _RefusedError(f"{name.lower().replace('_', ' ')} is not allowed")
    return found | frozenset(char.swapcase() for char in found)


def _between(first: int, last: int) -> _Set:
    """ASCII as it is; whatever lies beyond may be any of the samples there."""
    found = frozenset(char for char in _SAMPLES if first <= ord(char) <= last)
    return found | _FOREIGN if last > 127 else found


def _category(name: str) -> _Set:
    """`CATEGORY_NOT_DIGIT` and the like."""
    test = _CATEGORIES[name.rpartition("_")[2]]
    return frozenset(char for char in _SAMPLES if test(char) != ("_NOT_" in name))
