"""Tokens as a text: told as it grows, cut at the stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

__all__ = ["Written", "begun", "write"]


@dataclass(frozen=True, slots=True)
class Written:
    """`tokens` are all that were made, those of a stop too; `first` is the clock at the first."""

    text: str
    tokens: tuple[int, ...]
    first: float


def write(
    tokens: Generator[int],
    decode: Callable[[Sequence[int]], str],
    *,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> Written:
    """The text before the first of `stop`. `on_text` gets every piece that is final, and never a part of a stop."""
    new: list[int] = []
    sent, first, raw, end = 0, 0.0, "", -1
    with closing(tokens):
        for token in tokens:
            first = first or time.perf_counter()
            new.append(token)
            if not on_text and not stop:
                continue
            raw = decode(new)
            end = _end(raw, stop)
            if end >= 0:
                break
            if on_text and not raw.endswith("\ufffd"):  # half of a character: wait for the rest
                ready = begun(raw[: len(raw) - _held(raw, stop)])
                if len(ready) > sent:
                    on_text(ready[sent:])
                    sent = len(ready)
    text = begun(raw[:end] if end >= 0 else decode(new))
    if on_text and len(text) > sent:
        on_text(text[sent:])
    return Written(text.rstrip(), tuple(new), first or time.perf_counter())


def begun(text: str) -> str:
    """The answer as a text of its own: it follows a lead, so it starts with a space and a small letter."""
    text = text.lstrip()
    return text[:1].upper() + text[1:]


def _end(text: str, stop: Sequence[str]) -> int:
    """Where the first stop begins; -1 where there is none."""
    return min((at for at in map(text.find, stop) if at >= 0), default=-1)


def _held(text: str, stop: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop."""
    longest = min(max(map(len, stop), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(one.startswith(text[-n:]) for one in stop)), 0)
