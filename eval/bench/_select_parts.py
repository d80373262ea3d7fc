"""Where the time of a selection goes, and what it asks for: functions of the selectors with a clock around them.

`units`: cutting the hits into sentences. `scoring`: what says how good a candidate is: vectors, cosines, words, BM25,
the signals of a verifier. What is left of a selection is choosing: gains, budget, trimming, the ledger, the bubble.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

from rag.protocols import TokenCounter
from rag.tokens import RememberingCounter

__all__ = ["CharCounter", "timed", "worked"]

_ROOM = "retrievers.selectors"
_SCORING = (
    ("bubble", "pool_of"),
    ("mig", "pool_of"),
    ("mcts", "pool_of"),
    ("mmr", "_similarity"),
    ("verified", "VerifiedSelector.examine"),
)
_UNITS = (("bubble", "units_of"), ("mig", "units_of"), ("mcts", "units_of"))


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """CPU seconds of this thread in `units` and `scoring`, summed over the selections inside of the block."""
    seconds = {"units": 0.0, "scoring": 0.0}

    def clocked(part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begin = time.thread_time()
            try:
                return inner(*args, **options)
            finally:
                seconds[part] += time.thread_time() - begin

        return call

    with ExitStack() as stack:
        for part, places in (("units", _UNITS), ("scoring", _SCORING)):
            for file, name in places:
                owner, attribute = _owner(file, name)
                stack.enter_context(patch.object(owner, attribute, clocked(part, getattr(owner, attribute))))
        yield seconds


@contextmanager
def worked() -> Iterator[dict[str, int]]:
    """`gains` that were computed, and `sets` that a tree search scored, inside of the block."""
    work = {"gains": 0, "sets": 0}
    span, mcts = import_module("rag.spans.choice"), import_module(f"{_ROOM}.mcts")
    inner, utility = span.SpanChoice.gain, mcts.Utility
    made: list[Any] = []

    def gain(self: Any, at: int) -> float:
        work["gains"] += 1
        value: float = inner(self, at)
        return value

    def noted(*args: Any, **options: Any) -> Any:
        made.append(utility(*args, **options))
        return made[-1]

    with patch.object(span.SpanChoice, "gain", gain), patch.object(mcts, "Utility", noted):
        yield work
    work["sets"] = sum(one.calls for one in made)


def _owner(file: str, name: str) -> tuple[Any, str]:
    """The object that has the attribute: the module, or the class inside of it."""
    owner: Any = import_module(f"{_ROOM}.{file}")
    *outer, attribute = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, attribute


class CharCounter(RememberingCounter):
    """Another counter that notes how many characters it was given to tokenise, and how often; it knows no words yet."""

    def __init__(self, inner: TokenCounter) -> None:
        self.name, self.limit, self.additive = inner.name, inner.limit, inner.additive
        self.calls = self.characters = 0
        self._inner = inner

    def count(self, text: str) -> int:
        self._note(text)
        return self._inner.count(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        self._note(text)
        return self._inner.offsets(text)

    def _note(self, text: str) -> None:
        self.calls += 1
        self.characters += len(text)
