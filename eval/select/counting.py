"""Token counters for budgets, and one that notes what is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rag.errors import MissingError, UsageError
from rag.protocols import Embedder, TokenCounter
from rag.registry import build
from rag.text import TokenFinder, Tokens, TokenStarts

__all__ = ["COUNTERS", "CountingCounter", "counters_of"]

_T = TypeVar("_T")

COUNTERS = ("embedder", "generator")
"""Whose tokens a budget is counted in: the encoder's word pieces, or those of the local language model."""


class CountingCounter(TokenFinder):
    """Another counter that notes how often it is called, how many characters it is given, and its CPU seconds."""

    def __init__(self, inner: TokenCounter) -> None:
        self.name = inner.name
        self.limit = inner.limit
        self.additive = inner.additive
        self.calls = 0
        self.characters = 0
        self.cpu_seconds = 0.0
        self._inner = inner

    def count(self, text: str) -> int:
        return self._noted(text, lambda: self._inner.count(text))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return self._noted(text, lambda: self._inner.offsets(text))

    def count_slice(self, text: str, start: int, end: int) -> int:
        return self._noted(text[start:end], lambda: self._inner.count_slice(text, start, end))

    def tokens(self, text: str) -> Tokens:
        inner = self._inner
        return self._noted(
            text, lambda: inner.tokens(text) if isinstance(inner, TokenFinder) else TokenStarts(inner, text)
        )

    def _noted(self, text: str, call: Callable[[], _T]) -> _T:
        self.calls += 1
        self.characters += len(text)
        begin = time.process_time()
        answer = call()
        self.cpu_seconds += time.process_time() - begin
        return answer


def counters_of(names: Sequence[str], embedder: Embedder) -> tuple[dict[str, TokenCounter], Mapping[str, str]]:
    """The counters of these names, and why those that are absent are absent."""
    found: dict[str, TokenCounter] = {}
    absent: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name == "embedder":
            found[name] = embedder.counter
        elif name == "generator":
            try:
                found[name] = build("generator", "local", services={"counter": embedder.counter}).counter
                found[name].count("loads the tokenizer")
            except MissingError as error:
                absent[name] = str(error)
        else:
            raise UsageError(f"--counter {name}: expected {' or '.join(COUNTERS)}")
    if not found:
        raise UsageError(f"no counter for budgets: {'; '.join(absent.values()) or 'none was named'}")
    return found, absent
